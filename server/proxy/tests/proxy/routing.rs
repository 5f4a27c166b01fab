//! What a request becomes on its way, and where it goes.

use serde_json::json;

use crate::client::{self, post, request, send};
use crate::mock::{Behaviour, Mock, Step, good_stream};
use crate::setup::{Setup, serve, settings};

#[tokio::test]
async fn a_stream_goes_through_both_legs_and_comes_back_whole() {
    let setup = Setup::new(1, 1).await;
    let reply = setup.stream().await;
    assert_eq!(reply.status, 200);
    assert!(reply.ended);
    let expected: Vec<String> = (0..16).map(|index| format!(" t{index}")).collect();
    assert_eq!(reply.streamed_text(), expected.concat());
    assert_eq!(reply.events().last().unwrap(), "[DONE]");

    let (prefill, decode) = (&setup.prefill[0].seen()[0], &setup.decode[0].seen()[0]);
    assert_eq!(prefill.target, "/v1/completions");
    assert_eq!(
        prefill.body,
        json!({
            "prompt": "p", "stream": false, "max_tokens": 1, "min_tokens": 1,
            "kv_transfer_params": {
                "do_remote_decode": true, "do_remote_prefill": false, "remote_engine_id": null,
                "remote_block_ids": null, "remote_host": null, "remote_port": null,
            },
        })
    );
    assert_eq!(decode.body["stream"], true);
    assert_eq!(decode.body["max_tokens"], 16);
    assert_eq!(decode.body["kv_transfer_params"]["remote_host"], "p0");
    assert_eq!(prefill.id(), decode.id(), "both legs have the same id");
    assert_eq!(prefill.id(), reply.headers["x-request-id"]);
    setup.is_clean().await;
}

#[tokio::test]
async fn an_answer_in_one_piece_comes_back_as_it_is() {
    let setup = Setup::new(1, 1).await;
    let reply = setup.whole().await;
    assert_eq!(reply.status, 200);
    assert_eq!(reply.json()["choices"][0]["text"], "whole");
    let chat = json!({"messages": [{"role": "user", "content": "hi"}], "max_completion_tokens": 5});
    let reply = post(setup.proxy, "/v1/chat/completions", &chat).await;
    assert_eq!(reply.json()["choices"][0]["message"]["content"], "whole");
    let prefill = setup.prefill[0].seen()[1].clone();
    assert_eq!(prefill.target, "/v1/chat/completions");
    assert_eq!(prefill.body["max_completion_tokens"], 1);
    assert_eq!(setup.decode[0].seen()[1].body["max_completion_tokens"], 5);
    setup.is_clean().await;
}

#[tokio::test]
async fn credentials_and_ids_are_passed_on_and_nothing_else() {
    let setup = Setup::new(1, 1).await;
    let headers = [
        ("authorization", "Bearer client"),
        ("x-request-id", "mine"),
        ("x-data-parallel-rank", "7"),
        ("x-forwarded-host", "evil"),
    ];
    let body = json!({"prompt": "p"}).to_string();
    for _ in 0..2 {
        let reply = send(
            setup.proxy,
            request("POST", "/v1/completions", &headers, body.clone()),
        )
        .await;
        assert_eq!(reply.headers["x-request-id"], "mine");
    }
    let seen = [setup.prefill[0].seen(), setup.decode[0].seen()].concat();
    for request in &seen {
        assert_eq!(request.headers["authorization"], "Bearer client");
        assert!(request.id().starts_with("mine-"));
        assert!(!request.headers.contains_key("x-data-parallel-rank"));
        assert!(!request.headers.contains_key("x-forwarded-host"));
    }
    assert_ne!(seen[0].id(), seen[1].id(), "an id used twice is told apart");
}

#[tokio::test]
async fn a_client_can_t_name_where_to_pull_from() {
    let (setup, evil) = (Setup::new(1, 1).await, Mock::start("evil").await);
    let port = evil.address.port();
    let evil_params = json!({"do_remote_prefill": true, "remote_host": "127.0.0.1", "remote_port": port});
    let body = json!({"prompt": "p", "kv_transfer_params": evil_params}).to_string();
    let escaped = body.replace("kv_transfer_params", "kv_transfer_param\\u0073");
    for body in [body, escaped] {
        let headers = [("host", "evil"), ("x-forwarded-for", "evil")];
        let target = format!("http://127.0.0.1:{port}/v1/completions");
        for path in ["/v1/completions", target.as_str()] {
            let reply = send(setup.proxy, request("POST", path, &headers[1..], body.clone())).await;
            assert_eq!(reply.status, 200);
        }
    }
    for seen in setup.decode[0].seen() {
        assert_eq!(seen.body["kv_transfer_params"]["remote_host"], "p0");
    }
    for seen in setup.prefill[0].seen() {
        assert!(seen.body["kv_transfer_params"]["remote_host"].is_null());
    }
    assert_eq!((evil.count(), evil.connections()), (0, 0));
}

#[tokio::test]
async fn equal_instances_take_turns() {
    let setup = Setup::new(2, 2).await;
    for _ in 0..8 {
        assert_eq!(setup.whole().await.status, 200);
    }
    for mock in setup.prefill.iter().chain(&setup.decode) {
        assert!(mock.count() >= 2, "{}", mock.count());
    }
}

#[tokio::test]
async fn prompts_that_begin_alike_go_to_the_same_prefill_instance() {
    let setup = Setup::new(3, 1).await;
    for document in ["a", "b", "c"] {
        let beginning = document.repeat(20_000);
        for question in ["one", "two", "three", "four"] {
            let body = json!({"prompt": format!("{beginning}{question}")});
            assert_eq!(setup.complete(&body).await.status, 200);
        }
    }
    for document in ["a", "b", "c"] {
        let counts: Vec<usize> = setup
            .prefill
            .iter()
            .map(|mock| {
                mock.seen()
                    .iter()
                    .filter(|seen| seen.body["prompt"].as_str().unwrap().starts_with(document))
                    .count()
            })
            .collect();
        assert_eq!(counts.iter().max(), Some(&4), "{document}: {counts:?}");
    }
    assert!(setup.metric("kvstored_proxy_affinity_tokens_total").await > 40_000.0);
}

#[tokio::test]
async fn connections_are_used_again() {
    let setup = Setup::new(1, 1).await;
    for _ in 0..10 {
        setup.stream().await;
    }
    for mock in [&setup.prefill[0], &setup.decode[0]] {
        assert_eq!(mock.count(), 10);
        assert!(mock.connections() <= 3, "{}", mock.connections());
    }
}

#[tokio::test]
async fn models_health_and_metrics_are_told() {
    let setup = Setup::new(1, 2).await;
    let models = client::get(setup.proxy, "/v1/models").await;
    assert_eq!(models.json()["data"][0]["id"], "p0");
    let health = client::get(setup.proxy, "/healthcheck").await;
    assert_eq!(health.status, 200);
    let health = health.json();
    assert_eq!(health["status"], "ok");
    assert_eq!(
        (&health["prefill_instances"], &health["decode_instances"]),
        (&json!(1), &json!(2))
    );
    setup.stream().await;
    setup.is_clean().await;
    let name = setup.prefill[0].address;
    for family in ["queue", "prefill"] {
        let line = format!("kvstored_proxy_{family}_seconds_count{{instance=\"{name}\"}}");
        assert_eq!(setup.metric(&line).await, 1.0, "{family}");
    }
    let line = "kvstored_proxy_requests_total{route=\"completions\",outcome=\"ok\",code=\"200\"}";
    assert_eq!(setup.metric(line).await, 1.0);
}

#[tokio::test]
async fn instances_and_clients_may_be_on_ipv6() {
    let any = "[::1]:0".parse().unwrap();
    let (prefill, decode) = (Mock::start_at("p", any).await, Mock::start_at("d", any).await);
    let mocks = ([prefill], [decode]);
    let (proxy, _stop, _served) = serve(settings(&mocks.0, &mocks.1, "--host ::1"));
    assert!(proxy.is_ipv6());
    let reply = post(proxy, "/v1/completions", &json!({"prompt": "p", "stream": true})).await;
    assert_eq!(reply.events().last().unwrap(), "[DONE]");
    let headers = &mocks.0[0].seen()[0].headers;
    assert_eq!(headers["host"], mocks.0[0].address.to_string());
}

#[tokio::test]
async fn the_count_of_cached_tokens_is_the_prefill_instance_s() {
    let setup = Setup::new(1, 1).await;
    let prefilled = json!({
        "choices": [{"text": "x"}],
        "usage": {"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 4}},
        "kv_transfer_params": {"remote_block_ids": [1]},
    });
    let prefilled = Behaviour::Script("application/json", vec![Step::Data(prefilled.to_string())]);
    setup.prefill[0].behave(prefilled);
    let answer = json!({"choices": [{"text": "a"}], "usage": {"prompt_tokens": 9, "completion_tokens": 1,
        "prompt_tokens_details": {"cached_tokens": 9}}});
    let mut expected = answer.clone();
    expected["usage"]["prompt_tokens_details"]["cached_tokens"] = json!(4);
    let whole = Behaviour::Script("application/json", vec![Step::Data(answer.to_string())]);
    setup.decode[0].behave(whole);
    assert_eq!(setup.whole().await.json(), expected);

    let usage = format!("data: {}\n\n", json!({"choices": [], "usage": answer["usage"]}));
    let mut steps = good_stream(false);
    let done = steps.pop().unwrap();
    steps.extend([Step::Data(usage), done]);
    setup.decode[0].behave(Behaviour::Script("text/event-stream", steps));
    let body = json!({"prompt": "p", "stream": true, "stream_options": {"include_usage": true}});
    let events = setup.complete(&body).await.events();
    let last: serde_json::Value = serde_json::from_str(&events[events.len() - 2]).unwrap();
    assert_eq!(last, json!({"choices": [], "usage": expected["usage"]}));
    assert_eq!(events.len(), 18);

    // where the prefill instance doesn't tell, nothing is changed
    setup.prefill[0].behave(Behaviour::Good);
    let whole = Behaviour::Script("application/json", vec![Step::Data(answer.to_string())]);
    setup.decode[0].behave(whole);
    assert_eq!(setup.whole().await.json(), answer);
    setup.is_clean().await;
}

#[tokio::test]
async fn what_one_instance_has_to_do_goes_to_a_decode_instance_alone() {
    let setup = Setup::new(1, 1).await;
    for body in [
        json!({"prompt": "p", "prompt_logprobs": 2}),
        json!({"prompt": ["p", "q"]}),
        json!({"prompt": "p", "echo": true, "logprobs": 1, "stream": true}),
    ] {
        assert_eq!(setup.complete(&body).await.status, 200);
        let seen = setup.decode[0].seen();
        assert_eq!(seen.last().unwrap().body, body);
    }
    assert_eq!(setup.prefill[0].count(), 0);
    setup.is_clean().await;
}
