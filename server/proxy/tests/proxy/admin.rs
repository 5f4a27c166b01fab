//! Adding, draining and removing instances; who may do it.

use std::io::Write;

use serde_json::json;

use crate::client::{get, post, request, send};
use crate::mock::{Behaviour, Mock, Step, event};
use crate::setup::{Setup, eventually, nobody};

#[tokio::test]
async fn an_added_instance_takes_requests_once_it_answers() {
    let setup = Setup::new(1, 1).await;
    let added = Mock::start("d1").await;
    let name = added.address.to_string();
    let reply = setup.admin("add", "decode", json!(name)).await;
    assert_eq!(reply.status, 200);
    assert!(reply.json()["message"].as_str().unwrap().contains(&name));
    eventually("it is one of them", async || {
        setup.instances().await["current_decode_instances"]
            .as_array()
            .unwrap()
            .contains(&json!(name))
    })
    .await;
    for _ in 0..4 {
        assert_eq!(setup.whole().await.status, 200);
    }
    assert!(added.count() > 0);
    assert_eq!(setup.admin("add", "decode", json!([name])).await.status, 409);
}

#[tokio::test]
async fn an_instance_that_never_answers_is_given_up() {
    let setup = Setup::with_flags(1, 1, "--waiting-retry-interval 0.01 --max-waiting-retries 2").await;
    let nobody = nobody().await.to_string();
    assert_eq!(setup.admin("add", "prefill", json!([nobody])).await.status, 200);
    assert_eq!(setup.whole().await.status, 200);
    eventually("it is gone", async || {
        setup.instances().await["instances"].as_array().unwrap().len() == 2
    })
    .await;
}

#[tokio::test]
async fn a_removed_instance_ends_what_it_has_and_gets_nothing_more() {
    let setup = Setup::new(1, 2).await;
    let steps = vec![event(false, " one", None), Step::Stall];
    for mock in &setup.decode {
        mock.behave(Behaviour::Script("text/event-stream", steps.clone()));
    }
    let body = json!({"prompt": "p", "stream": true}).to_string();
    let under_way = crate::client::open(setup.proxy, request("POST", "/v1/completions", &[], body)).await;
    let busy = usize::from(setup.decode[0].count() == 0);
    for mock in &setup.decode {
        mock.behave(Behaviour::Good);
    }
    let name = setup.decode[busy].address.to_string();
    assert_eq!(setup.admin("remove", "decode", json!([name])).await.status, 200);
    for _ in 0..4 {
        assert_eq!(setup.whole().await.status, 200);
    }
    assert_eq!(setup.decode[busy].count(), 1);
    let phase = |instances: &serde_json::Value| {
        let all = instances["instances"].as_array().unwrap();
        let one = all.iter().find(|instance| instance["instance"] == name.as_str());
        one.map(|one| one["phase"].as_str().unwrap().to_owned())
    };
    assert_eq!(phase(&setup.instances().await).as_deref(), Some("leaving"));
    drop(under_way);
    eventually("it is gone", async || phase(&setup.instances().await).is_none()).await;
    assert_eq!(setup.admin("remove", "decode", json!([name])).await.status, 404);
    setup.is_clean().await;
}

#[tokio::test]
async fn a_drained_instance_stays_and_can_come_back() {
    let setup = Setup::new(2, 1).await;
    let name = setup.prefill[0].address.to_string();
    assert_eq!(setup.admin("drain", "prefill", json!(name)).await.status, 200);
    for _ in 0..4 {
        assert_eq!(setup.whole().await.status, 200);
    }
    assert_eq!(setup.prefill[0].count(), 0);
    assert_eq!(setup.admin("add", "prefill", json!(name)).await.status, 200);
    for _ in 0..4 {
        assert_eq!(setup.whole().await.status, 200);
    }
    assert!(setup.prefill[0].count() > 0);
}

#[tokio::test]
async fn wrong_changes_say_what_is_wrong_and_change_nothing() {
    let setup = Setup::new(1, 1).await;
    let before = setup.instances().await;
    for (role, instances, word) in [
        ("router", json!(["h:1"]), "prefill"),
        ("prefill", json!(5), "HOST:PORT"),
        ("prefill", json!(["h"]), "\"h\""),
        ("prefill", json!(["http://h:1"]), "http://h:1"),
        ("prefill", json!(["::1:80"]), "IPV6"),
    ] {
        let reply = setup.admin("add", role, instances).await;
        assert_eq!(reply.status, 400);
        assert!(reply.message().contains(word), "{}", reply.message());
    }
    let both = json!([setup.decode[0].address.to_string(), "10.0.0.1:1"]);
    assert_eq!(setup.admin("remove", "decode", both).await.status, 404);
    assert_eq!(setup.instances().await, before);
}

#[tokio::test]
async fn without_a_token_admin_routes_are_for_loopback_only() {
    let setup = Setup::with_flags(1, 1, "--host 0.0.0.0").await;
    let proxy = ([127, 0, 0, 1], setup.proxy.port()).into();
    for path in [
        "/instances",
        "/instances/add",
        "/instances/remove",
        "/reset_prefix_cache",
    ] {
        let reply = post(proxy, path, &json!({"type": "decode", "instances": "h:1"})).await;
        assert_eq!(reply.status, 403, "{path}");
        assert!(reply.message().contains("--admin-token-file"));
    }
    assert_eq!(setup.prefill[0].count(), 0);
    assert_eq!(get(proxy, "/healthcheck").await.status, 200);
    assert_eq!(
        post(proxy, "/v1/completions", &json!({"prompt": "p"}))
            .await
            .status,
        200
    );
}

#[tokio::test]
async fn with_a_token_admin_routes_ask_for_it() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(file, "secret").unwrap();
    let flags = format!("--host 0.0.0.0 --admin-token-file {}", file.path().display());
    let setup = Setup::with_flags(1, 1, &flags).await;
    let proxy = ([127, 0, 0, 1], setup.proxy.port()).into();
    for (given, status) in [
        (None, 401),
        (Some("Bearer wrong"), 401),
        (Some("secret"), 401),
        (Some("Bearer secret"), 200),
    ] {
        let headers: Vec<(&str, &str)> = given.map(|given| ("authorization", given)).into_iter().collect();
        let reply = send(proxy, request("GET", "/instances", &headers, String::new())).await;
        assert_eq!(reply.status, status, "{given:?}");
    }
    let headers = [("authorization", "Bearer secret")];
    let reply = send(
        proxy,
        request(
            "POST",
            "/reset_prefix_cache?reset_running=1",
            &headers,
            String::new(),
        ),
    )
    .await;
    assert_eq!(reply.status, 200);
    for mock in [&setup.prefill[0], &setup.decode[0]] {
        let seen = mock.seen();
        assert_eq!(seen[0].target, "/reset_prefix_cache?reset_running=1");
        assert!(
            !seen[0].headers.contains_key("authorization"),
            "the token stays here"
        );
    }
}

#[tokio::test]
async fn caches_that_could_not_be_emptied_are_named() {
    let mut setup = Setup::new(1, 1).await;
    setup.decode[0].kill().await;
    let reply = post(setup.proxy, "/reset_prefix_cache", &json!({})).await;
    assert_eq!(reply.status, 500);
    assert_eq!(
        reply.json()["failed"],
        json!([format!("http://{}", setup.decode[0].address)])
    );
}
