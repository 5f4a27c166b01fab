//! Decode instances that fail, before the first event and after.

use serde_json::json;

use http_body_util::BodyExt;

use crate::client::{open, request};
use crate::mock::{Behaviour, Step, event, good_stream};
use crate::setup::{Setup, eventually};

const SSE: &str = "text/event-stream";

fn broken_streams() -> Vec<Vec<Step>> {
    let half = || Step::Data("data: {\"choices\":[{\"te".into());
    vec![
        vec![],
        vec![half()],
        vec![half(), Step::Break],
        vec![half(), Step::Stall],
        vec![Step::Stall],
        vec![Step::Break],
        vec![Step::Data(format!("data: {}", "x".repeat(2 << 20)))],
    ]
}

#[tokio::test]
async fn before_the_first_event_another_instance_takes_over() {
    let faults = [
        Behaviour::Status(500, "{}"),
        Behaviour::Status(503, "busy"),
        Behaviour::Close,
        Behaviour::Hang,
    ];
    let streams = broken_streams()
        .into_iter()
        .map(|steps| Behaviour::Script(SSE, steps));
    for fault in faults.into_iter().chain(streams) {
        let setup = Setup::with_flags(1, 2, "--first-event-timeout-ms 200").await;
        setup.decode[0].behave(fault.clone());
        for _ in 0..3 {
            let reply = setup.stream().await;
            assert_eq!(reply.status, 200, "{fault:?}");
            assert_eq!(reply.events().last().unwrap(), "[DONE]", "{fault:?}");
        }
        assert!(setup.decode[0].count() > 0);
        // whoever may have begun to pull makes the old KV worthless, so there is a prefill for each try
        let tries = setup.decode[0].count() + setup.decode[1].count();
        assert_eq!(setup.prefill[0].count(), tries, "{fault:?}");
        setup.is_clean().await;
    }
}

#[tokio::test]
async fn each_prefill_of_a_request_has_an_id_of_its_own() {
    let setup = Setup::new(1, 2).await;
    for mock in &setup.decode {
        mock.behave_in_turn([Behaviour::Status(500, "{}"), Behaviour::Good]);
    }
    assert_eq!(setup.stream().await.status, 200);
    let seen = setup.prefill[0].seen();
    let mut ids: Vec<&str> = seen.iter().map(crate::mock::Seen::id).collect();
    ids.sort_unstable();
    ids.dedup();
    assert!(seen.len() >= 2);
    assert_eq!(ids.len(), seen.len());
}

#[tokio::test]
async fn when_nobody_can_the_client_gets_an_error_and_never_an_empty_answer() {
    for (fault, status) in [
        (Behaviour::Status(500, "{}"), 502),
        (Behaviour::Close, 502),
        (Behaviour::Script(SSE, vec![]), 502),
        (Behaviour::Script("application/json", vec![]), 502),
        (Behaviour::Script(SSE, vec![Step::Stall]), 504),
    ] {
        let setup = Setup::with_flags(1, 1, "--first-event-timeout-ms 100").await;
        setup.decode[0].behave(fault.clone());
        let reply = setup.stream().await;
        assert_eq!(reply.status, status, "{fault:?}");
        assert!(!reply.message().is_empty());
        setup.is_clean().await;
    }
    let setup = Setup::new(1, 1).await;
    for fault in [
        Behaviour::Script("application/json", vec![]),
        Behaviour::Script(
            "application/json",
            vec![Step::Data("{\"choices\"".into()), Step::Break],
        ),
        Behaviour::Status(500, ""),
    ] {
        setup.decode[0].behave(fault.clone());
        let reply = setup.whole().await;
        assert_eq!(reply.status, 502, "{fault:?}");
        assert!(!reply.message().is_empty());
    }
    setup.is_clean().await;
}

#[tokio::test]
async fn after_the_first_event_a_broken_stream_ends_with_an_error_event() {
    for rest in broken_streams() {
        let setup = Setup::with_flags(1, 2, "--event-timeout-ms 200").await;
        let mut steps = vec![event(false, " one", None), event(false, " two", None)];
        steps.extend(rest.clone());
        for mock in &setup.decode {
            mock.behave(Behaviour::Script(SSE, steps.clone()));
        }
        let reply = setup.stream().await;
        assert_eq!(reply.status, 200);
        assert!(reply.ended, "{rest:?}");
        assert_eq!(reply.streamed_text(), " one two", "{rest:?}");
        assert!(!reply.stream_error().is_empty());
        assert_eq!(
            setup.decode[0].count() + setup.decode[1].count(),
            1,
            "not tried again"
        );
        let line = "kvstored_proxy_requests_total{route=\"completions\",outcome=\"broken\",code=\"200\"}";
        assert_eq!(setup.metric(line).await, 1.0);
        setup.is_clean().await;
    }
}

#[tokio::test]
async fn a_decode_instance_killed_in_mid_stream_is_an_error_event() {
    let mut setup = Setup::new(1, 1).await;
    setup.decode[0].behave(Behaviour::Script(
        SSE,
        vec![event(false, " one", None), Step::Stall],
    ));
    let body = json!({"prompt": "p", "stream": true}).to_string();
    let mut answer = open(setup.proxy, request("POST", "/v1/completions", &[], body)).await;
    let first = answer.body_mut().frame().await.unwrap().unwrap();
    assert!(first.data_ref().unwrap().starts_with(b"data: {"));
    setup.decode[0].kill().await;
    let rest = answer.body_mut().collect().await.unwrap().to_bytes();
    let rest = String::from_utf8(rest.to_vec()).unwrap();
    assert!(rest.contains("\"error\"") && rest.ends_with("\n\n"), "{rest}");
    setup.is_clean().await;
}

#[tokio::test]
async fn what_comes_after_done_doesn_t_matter() {
    for end in [Step::Break, Step::Stall] {
        let setup = Setup::with_flags(1, 1, "--event-timeout-ms 200").await;
        let mut steps = good_stream(false);
        steps.push(end);
        setup.decode[0].behave(Behaviour::Script(SSE, steps));
        let reply = setup.stream().await;
        assert!(reply.ended);
        assert_eq!(reply.events().last().unwrap(), "[DONE]");
        setup.is_clean().await;
    }
}

#[tokio::test]
async fn events_cut_anywhere_arrive_whole() {
    let setup = Setup::new(1, 1).await;
    let all: String = good_stream(false)
        .into_iter()
        .map(|step| match step {
            Step::Data(text) => text,
            other => panic!("{other:?}"),
        })
        .collect();
    for size in [1, 2, 3, 7, 50, 1000] {
        let pieces = all
            .as_bytes()
            .chunks(size)
            .map(|piece| Step::Data(String::from_utf8(piece.to_vec()).unwrap()))
            .collect();
        setup.decode[0].behave(Behaviour::Script(SSE, pieces));
        assert_eq!(setup.stream().await.text, all);
    }
}

#[tokio::test]
async fn a_whole_request_has_a_limit_too() {
    let setup = Setup::with_flags(1, 1, "--request-timeout-ms 200").await;
    setup.decode[0].behave(Behaviour::Hang);
    assert_eq!(setup.whole().await.status, 504);
    let endless = vec![event(false, " one", None), Step::Stall];
    setup.decode[0].behave(Behaviour::Script(SSE, endless));
    assert!(!setup.stream().await.stream_error().is_empty());
    setup.is_clean().await;
}

#[tokio::test]
async fn a_client_that_leaves_takes_both_legs_with_it() {
    let setup = Setup::new(1, 1).await;
    let body = json!({"prompt": "p", "stream": true}).to_string();
    let request = || request("POST", "/v1/completions", &[], body.clone());

    setup.prefill[0].behave(Behaviour::Hang);
    let waiting = tokio::spawn(open(setup.proxy, request()));
    eventually("the prefill is under way", async || setup.prefill[0].count() == 1).await;
    waiting.abort();
    eventually("the prefill is given up", async || {
        setup.prefill[0].cancelled() == 1
    })
    .await;

    setup.prefill[0].behave(Behaviour::Good);
    setup.decode[0].behave(Behaviour::Hang);
    let waiting = tokio::spawn(open(setup.proxy, request()));
    eventually("the decode is under way", async || setup.decode[0].count() == 1).await;
    waiting.abort();
    eventually("the decode is given up", async || {
        setup.decode[0].cancelled() == 1
    })
    .await;

    let endless = vec![event(false, " one", None), Step::Stall];
    setup.decode[0].behave(Behaviour::Script(SSE, endless));
    let mut answer = open(setup.proxy, request()).await;
    answer.body_mut().frame().await.unwrap().unwrap();
    drop(answer);
    eventually("the stream is given up", async || {
        setup.decode[0].cancelled() == 2
    })
    .await;
    setup.is_clean().await;
    let metrics = crate::client::get(setup.proxy, "/metrics").await.text;
    let gone: f64 = metrics
        .lines()
        .filter(|line| line.contains("outcome=\"client_gone\""))
        .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
        .sum();
    assert_eq!(gone, 3.0);
}

#[tokio::test]
async fn a_client_that_leaves_with_everything_is_no_client_that_left() {
    let setup = Setup::new(1, 1).await;
    let mut steps = good_stream(false);
    steps.push(Step::Stall);
    setup.decode[0].behave(Behaviour::Script(SSE, steps));
    let body = json!({"prompt": "p", "stream": true}).to_string();
    let mut answer = open(setup.proxy, request("POST", "/v1/completions", &[], body)).await;
    let mut text = Vec::new();
    while !text.ends_with(b"data: [DONE]\n\n") {
        let frame = answer.body_mut().frame().await.unwrap().unwrap();
        text.extend_from_slice(frame.data_ref().unwrap());
    }
    drop(answer);
    let line = "kvstored_proxy_requests_total{route=\"completions\",outcome=\"ok\",code=\"200\"}";
    eventually("it is counted", async || setup.metric(line).await == 1.0).await;
    setup.is_clean().await;
}
