//! Both legs at once.

use serde_json::{Value, json};

use crate::client::{open, request};
use crate::mock::{Behaviour, Mock, Step};
use crate::setup::{Setup, eventually};

const PARAMS: &str = "kv_transfer_params";

/// One whose prefill instance has said that it can be followed, and whose instances answer when they are let.
async fn setup(prefill: usize, decode: usize) -> Setup {
    let setup = Setup::new(prefill, decode).await;
    for mock in &setup.prefill {
        mock.behave(Behaviour::Followed("e1", false));
    }
    for _ in 0..prefill {
        assert_eq!(setup.stream().await.status, 200);
    }
    for mock in &setup.prefill {
        mock.behave(Behaviour::Followed("e1", true));
    }
    for mock in &setup.decode {
        mock.behave(Behaviour::Gated);
    }
    setup
}

fn count(mocks: &[Mock]) -> usize {
    mocks.iter().map(Mock::count).sum()
}

fn last(mock: &Mock) -> Value {
    mock.seen().last().unwrap().body.clone()
}

/// A completion that waits for its answer.
fn ask(setup: &Setup) -> tokio::task::JoinHandle<crate::client::Reply> {
    let proxy = setup.proxy;
    let body = json!({"prompt": "p", "stream": true, "max_tokens": 16});
    tokio::spawn(async move { crate::client::post(proxy, "/v1/completions", &body).await })
}

/// Waits until both instances have been asked once more.
async fn both_asked(setup: &Setup) {
    eventually("both legs are under way", async || {
        setup.prefill[0].count() == 2 && setup.decode[0].count() == 2
    })
    .await;
}

#[tokio::test]
async fn the_decode_leg_goes_out_with_the_prefill() {
    let setup = setup(1, 1).await;
    let first = &setup.decode[0].seen()[0].body;
    assert_eq!(
        first[PARAMS]["remote_request_id"], "plain",
        "nothing was known yet"
    );
    let asked = ask(&setup);
    both_asked(&setup).await;
    let (prefill, decode) = (last(&setup.prefill[0]), last(&setup.decode[0]));
    let name = prefill[PARAMS]["kvstored_transfer"].as_str().unwrap();
    assert_eq!(prefill["max_tokens"], 1);
    assert_eq!(decode["max_tokens"], 16);
    assert_eq!(
        decode[PARAMS],
        json!({
            "do_remote_prefill": true, "do_remote_decode": false, "kvstored_transfer": name, "remote_engine_id": "e1",
            "remote_host": "10.0.0.1", "remote_port": 20001, "remote_ptp_size": 1, "remote_pp_size": 1,
            "remote_block_size": 128,
        })
    );
    setup.prefill[0].let_go();
    setup.decode[0].let_go();
    let reply = asked.await.unwrap();
    assert_eq!(reply.status, 200);
    assert_eq!(reply.events().last().unwrap(), "[DONE]");
    assert_eq!((count(&setup.prefill), count(&setup.decode)), (2, 2));
    setup.is_clean().await;
}

#[tokio::test]
async fn an_answer_that_comes_before_the_prefills_end_is_passed_on() {
    let setup = setup(1, 1).await;
    let asked = ask(&setup);
    both_asked(&setup).await;
    // it has computed the prompt itself
    setup.decode[0].let_go();
    assert_eq!(asked.await.unwrap().status, 200);
    eventually("the prefill is given up", async || {
        setup.prefill[0].cancelled() == 1
    })
    .await;
    setup.is_clean().await;
}

#[tokio::test]
async fn an_instance_that_was_started_anew_is_gone_to_again() {
    let setup = setup(1, 1).await;
    setup.prefill[0].behave(Behaviour::Followed("e2", true));
    let asked = ask(&setup);
    both_asked(&setup).await;
    setup.prefill[0].let_go();
    eventually("the decode leg is sent again", async || {
        setup.decode[0].count() == 3
    })
    .await;
    assert_eq!(setup.decode[0].cancelled(), 1);
    let params = &last(&setup.decode[0])[PARAMS];
    assert_eq!(params["remote_engine_id"], "e2");
    assert!(params["remote_request_id"].as_str().unwrap().ends_with(":0123"));
    setup.decode[0].let_go();
    assert_eq!(asked.await.unwrap().status, 200);
    assert_eq!(count(&setup.prefill), 2);
    setup.is_clean().await;
}

#[tokio::test]
async fn a_prefill_that_fails_ends_the_other_leg_and_is_done_elsewhere() {
    let setup = setup(2, 1).await;
    for mock in &setup.prefill {
        mock.behave_in_turn([Behaviour::Status(500, "{}"), Behaviour::Followed("e1", false)]);
    }
    let before = count(&setup.prefill);
    let asked = ask(&setup);
    // two for what the instances have said, one beside the prefill that fails
    eventually("the decode leg is sent again", async || {
        setup.decode[0].count() == 4
    })
    .await;
    assert_eq!(setup.decode[0].cancelled(), 1);
    setup.decode[0].let_go();
    assert_eq!(asked.await.unwrap().status, 200);
    // each of the two fails once
    assert_eq!(count(&setup.prefill), before + 3);
    let followed = setup.prefill.iter().flat_map(Mock::seen);
    let followed = followed.filter(|seen| !seen.body[PARAMS]["kvstored_transfer"].is_null());
    assert_eq!(followed.count(), 1, "only the first try is followed");
    setup.is_clean().await;
}

#[tokio::test]
async fn a_decode_leg_that_fails_ends_the_prefill() {
    let setup = setup(1, 1).await;
    setup.decode[0].behave_in_turn([Behaviour::Status(500, "{}"), Behaviour::Good]);
    let asked = ask(&setup);
    eventually("the prefill is given up", async || {
        setup.prefill[0].cancelled() == 1
    })
    .await;
    setup.prefill[0].let_go();
    assert_eq!(asked.await.unwrap().status, 200);
    assert_eq!(last(&setup.prefill[0])[PARAMS]["kvstored_transfer"], Value::Null);
    assert_eq!(last(&setup.decode[0])[PARAMS]["remote_request_id"], "plain");
    setup.is_clean().await;
}

#[tokio::test]
async fn one_that_keeps_nothing_leaves_the_prompt_to_the_other() {
    let setup = setup(1, 1).await;
    let nothing = Step::Data(json!({"choices": [{"text": "x"}]}).to_string());
    setup.prefill[0].behave(Behaviour::Script("application/json", vec![nothing]));
    let asked = ask(&setup);
    both_asked(&setup).await;
    setup.decode[0].let_go();
    assert_eq!(asked.await.unwrap().status, 200);
    assert_eq!(setup.decode[0].cancelled(), 0);
    // and it isn't followed any more
    setup.decode[0].let_go();
    assert_eq!(setup.stream().await.status, 200);
    assert_eq!(last(&setup.prefill[0])[PARAMS]["kvstored_transfer"], Value::Null);
    setup.is_clean().await;
}

#[tokio::test]
async fn a_client_that_leaves_ends_both() {
    let setup = setup(1, 1).await;
    let body = json!({"prompt": "p", "stream": true}).to_string();
    let waiting = tokio::spawn(open(setup.proxy, request("POST", "/v1/completions", &[], body)));
    both_asked(&setup).await;
    waiting.abort();
    eventually("both are given up", async || {
        setup.prefill[0].cancelled() == 1 && setup.decode[0].cancelled() == 1
    })
    .await;
    setup.is_clean().await;
}
