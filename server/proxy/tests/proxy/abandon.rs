//! KV that nobody will pull: its keeper is told.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use crate::client::{open, request};
use crate::mock::{Behaviour, Mock, Seen, Step};
use crate::setup::{Setup, eventually, serve, settings};

/// A prefill's answer that names the engine with the KV.
fn kept() -> Behaviour {
    let answer = json!({
        "choices": [{"text": "x"}],
        "kv_transfer_params": {"do_remote_prefill": true, "remote_engine_id": "e1", "remote_block_ids": [4, 5]},
    });
    Behaviour::Script("application/json", vec![Step::Data(answer.to_string())])
}

fn body() -> Value {
    json!({"model": "m", "prompt": "p", "stream": true})
}

/// What told decode instances to have KV freed.
fn words(setup: &Setup) -> Vec<Seen> {
    let all = setup.decode.iter().flat_map(Mock::seen);
    all.filter(|seen| seen.body["kv_transfer_params"]["kvstored_abandon"] == true)
        .collect()
}

#[tokio::test]
async fn a_client_that_leaves_between_the_legs_leaves_no_kv() {
    // a decode instance that never accepts a connection: its queue is full
    let mut stuck = Mock::start("stuck").await;
    stuck.kill().await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(stuck.address).unwrap();
    let listener = socket.listen(1).unwrap();
    let mut queue = Vec::new();
    while let Ok(Ok(stream)) = timeout(Duration::from_millis(200), TcpStream::connect(stuck.address)).await {
        queue.push(stream);
    }
    let prefill = vec![Mock::start("p0").await];
    let decode = vec![stuck, Mock::start("d1").await];
    let (proxy, stop, served) = serve(settings(&prefill, &decode, "--connect-timeout-ms 60000"));
    let setup = Setup {
        prefill,
        decode,
        proxy,
        stop,
        served,
    };
    setup.prefill[0].behave(kept());
    let headers = [("authorization", "Bearer key")];
    let waiting = tokio::spawn(open(
        setup.proxy,
        request("POST", "/v1/completions", &headers, body().to_string()),
    ));
    let instance = setup.decode[0].address;
    let line = format!("kvstored_proxy_instance_requests{{role=\"decode\",instance=\"{instance}\"}}");
    eventually("the decode is to be sent", async || {
        setup.metric(&line).await == 1.0
    })
    .await;
    assert_eq!(setup.decode[1].count(), 0);
    waiting.abort();
    eventually("the KV is given up", async || words(&setup).len() == 1).await;
    let word = &words(&setup)[0];
    assert_eq!(word.target, "/v1/completions");
    assert_eq!(word.headers["authorization"], "Bearer key");
    assert_eq!(
        word.body,
        json!({
            "model": "m", "prompt": [1], "max_tokens": 1, "stream": false,
            "kv_transfer_params": {
                "kvstored_abandon": true, "do_remote_prefill": true, "remote_engine_id": "e1", "remote_block_ids": [4, 5],
            },
        })
    );
    let line = "kvstored_proxy_abandoned_total{result=\"ok\"}";
    eventually("it is counted", async || setup.metric(line).await == 1.0).await;
    setup.is_clean().await;
    drop((listener, queue));
}

#[tokio::test]
async fn a_decode_that_failed_leaves_no_kv() {
    for fault in [
        Behaviour::Status(500, "{}"),
        Behaviour::Status(400, "{}"),
        Behaviour::Close,
        Behaviour::Hang,
    ] {
        let setup = Setup::with_flags(1, 2, "--first-event-timeout-ms 200").await;
        setup.prefill[0].behave(kept());
        setup.decode[0].behave_in_turn([fault.clone(), Behaviour::Good]);
        // they take turns, so the second meets the fault if the first doesn't
        for _ in 0..2 {
            let status = setup.complete(&body()).await.status.as_u16();
            assert!([200, 400].contains(&status), "{fault:?}: {status}");
        }
        eventually("the KV is given up", async || words(&setup).len() == 1).await;
        setup.is_clean().await;
    }
}

#[tokio::test]
async fn whoever_has_the_request_is_not_told_besides() {
    let setup = Setup::new(1, 1).await;
    setup.prefill[0].behave(kept());
    // it ends well
    assert_eq!(setup.complete(&body()).await.events().last().unwrap(), "[DONE]");
    // or the client leaves when the decode instance has it: the closed connection says enough
    setup.decode[0].behave(Behaviour::Hang);
    let waiting = tokio::spawn(open(
        setup.proxy,
        request("POST", "/v1/completions", &[], body().to_string()),
    ));
    eventually("the decode is under way", async || setup.decode[0].count() == 2).await;
    waiting.abort();
    eventually("the decode is given up", async || {
        setup.decode[0].cancelled() == 1
    })
    .await;
    setup.is_clean().await;
    assert!(words(&setup).is_empty());
    assert_eq!(setup.decode[0].count(), 2);
}

#[tokio::test]
async fn kv_of_an_unknown_keeper_or_switched_off_is_left_to_its_lease() {
    for (flags, behaviour) in [("", Behaviour::Good), ("--no-abandon", kept())] {
        let setup = Setup::with_flags(1, 2, flags).await;
        setup.prefill[0].behave(behaviour);
        setup.decode[0].behave(Behaviour::Status(500, "{}"));
        for _ in 0..3 {
            assert_eq!(setup.complete(&body()).await.events().last().unwrap(), "[DONE]");
        }
        setup.is_clean().await;
        assert!(words(&setup).is_empty(), "{flags}");
        assert_eq!(setup.metric("kvstored_proxy_abandoned_total").await, 0.0);
    }
}

#[tokio::test]
async fn a_word_that_nobody_takes_is_counted_and_no_more() {
    let setup = Setup::with_flags(1, 1, "--max-retries 2").await;
    setup.prefill[0].behave(kept());
    setup.decode[0].behave(Behaviour::Status(500, "{}"));
    assert_eq!(setup.complete(&body()).await.status, 502);
    let line = "kvstored_proxy_abandoned_total{result=\"failed\"}";
    eventually("both are counted", async || setup.metric(line).await == 2.0).await;
    setup.is_clean().await;
}
