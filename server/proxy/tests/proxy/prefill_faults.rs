//! Prefill instances that fail.

use serde_json::json;

use crate::client::post;
use crate::mock::{Behaviour, Mock, Step};
use crate::setup::{Setup, eventually};

#[tokio::test]
async fn what_fails_at_one_is_done_by_another() {
    for fault in [
        Behaviour::Status(500, "{}"),
        Behaviour::Status(503, "busy"),
        Behaviour::Status(429, "busy"),
        Behaviour::Close,
        Behaviour::Hang,
        Behaviour::Script("application/json", vec![Step::Data("no json".into())]),
        Behaviour::Script("application/json", vec![Step::Data("{\"kv".into()), Step::Break]),
        Behaviour::Script("application/json", vec![Step::Data("{".into()), Step::Stall]),
    ] {
        let setup = Setup::with_flags(2, 1, "--prefill-timeout-ms 200").await;
        setup.prefill[0].behave(fault.clone());
        for _ in 0..4 {
            let reply = setup.stream().await;
            assert_eq!(reply.status, 200, "{fault:?}");
            assert_eq!(reply.events().last().unwrap(), "[DONE]");
        }
        for seen in setup.decode[0].seen() {
            assert_eq!(seen.body["kv_transfer_params"]["remote_host"], "p1");
        }
        assert!(setup.prefill[0].count() > 0, "{fault:?}");
        setup.is_clean().await;
    }
}

#[tokio::test]
async fn when_nobody_can_the_client_is_told() {
    for (fault, status, word) in [
        (Behaviour::Status(500, "{}"), 502, "failed"),
        (Behaviour::Status(503, "busy"), 503, "busy"),
        (Behaviour::Close, 502, "broke the connection"),
        (Behaviour::Hang, 504, "in time"),
    ] {
        let setup = Setup::with_flags(2, 1, "--prefill-timeout-ms 100").await;
        for mock in &setup.prefill {
            mock.behave(fault.clone());
        }
        for reply in [setup.stream().await, setup.whole().await] {
            assert_eq!(reply.status, status, "{fault:?}");
            assert!(reply.message().contains(word), "{}", reply.message());
        }
        let tries: usize = setup.prefill.iter().map(Mock::count).sum();
        assert_eq!(tries, 6, "{fault:?}");
        assert_eq!(setup.decode[0].count(), 0);
        setup.is_clean().await;
    }
}

#[tokio::test]
async fn what_the_instance_refuses_the_client_sees() {
    let setup = Setup::new(2, 1).await;
    for mock in &setup.prefill {
        mock.behave(Behaviour::Status(400, "{\"error\":\"too long\"}"));
    }
    let reply = setup.stream().await;
    assert_eq!(
        (reply.status.as_u16(), reply.text.as_str()),
        (400, "{\"error\":\"too long\"}")
    );
    assert_eq!(
        setup.prefill[0].count() + setup.prefill[1].count(),
        1,
        "not tried again"
    );
    setup.is_clean().await;
}

#[tokio::test]
async fn without_transfer_parameters_the_decode_instance_computes_the_prompt() {
    for answer in [
        r#"{"choices":[]}"#,
        r#"{"kv_transfer_params":null}"#,
        r#"{"kv_transfer_params":5}"#,
    ] {
        let setup = Setup::new(1, 1).await;
        setup.prefill[0].behave(Behaviour::Script(
            "application/json",
            vec![Step::Data(answer.into())],
        ));
        let body = json!({"prompt": "p", "stream": true, "kv_transfer_params": {"remote_host": "evil"}});
        let reply = setup.complete(&body).await;
        assert_eq!(reply.events().last().unwrap(), "[DONE]");
        assert!(setup.decode[0].seen()[0].body["kv_transfer_params"].is_null());
        setup.is_clean().await;
    }
}

#[tokio::test]
async fn a_killed_prefill_instance_costs_no_request() {
    let mut setup = Setup::new(2, 2).await;
    let proxy = setup.proxy;
    let body = json!({"prompt": "p", "stream": true});
    let clients: Vec<_> = (0..16)
        .map(|_| {
            let body = body.clone();
            tokio::spawn(async move {
                for _ in 0..20 {
                    let reply = post(proxy, "/v1/completions", &body).await;
                    assert_eq!(reply.status, 200);
                    assert_eq!(reply.events().last().unwrap(), "[DONE]");
                }
            })
        })
        .collect();
    eventually("requests flow", async || setup.prefill[0].count() > 20).await;
    setup.prefill[0].kill().await;
    for client in clients {
        client.await.unwrap();
    }
    setup.is_clean().await;
}

#[tokio::test]
async fn with_all_prefill_instances_down_the_answer_comes_at_once() {
    let mut setup = Setup::new(1, 1).await;
    setup.prefill[0].kill().await;
    let first = setup.stream().await;
    assert!([502, 503].contains(&first.status.as_u16()), "{}", first.status);
    eventually("the instance is known to be down", async || {
        setup.instances().await["instances"][0]["reachable"] == false
    })
    .await;
    let reply = setup.stream().await;
    assert_eq!(reply.status, 503);
    assert!(reply.message().contains("no prefill instance"));
    assert_eq!(reply.headers["retry-after"], "1");
    setup.is_clean().await;
}

#[tokio::test]
async fn a_prefill_instance_killed_before_its_kv_was_pulled_costs_no_request() {
    let mut setup = Setup::new(2, 1).await;
    setup.decode[0].behave(Behaviour::Hang);
    let proxy = setup.proxy;
    let body = json!({"prompt": "p", "stream": true});
    let client = tokio::spawn(async move { post(proxy, "/v1/completions", &body).await });
    eventually("the decode instance pulls", async || setup.decode[0].count() == 1).await;
    let killed = usize::from(setup.prefill[1].count() > 0);
    let named = setup.decode[0].seen()[0].body["kv_transfer_params"]["remote_host"].clone();
    assert_eq!(named, format!("p{killed}"));
    setup.prefill[killed].kill().await;
    // what it answers when nobody is there to pull from
    setup.decode[0].behave(Behaviour::Good);
    setup.decode[0].break_pending();
    let reply = client.await.unwrap();
    assert_eq!(reply.events().last().unwrap(), "[DONE]");
    let last = setup.decode[0].seen().pop().unwrap();
    assert_eq!(
        last.body["kv_transfer_params"]["remote_host"],
        format!("p{}", 1 - killed)
    );
    setup.is_clean().await;
}
