//! Instances that go down and come back, and the proxy's own end.

use serde_json::json;
use tokio::net::TcpStream;

use crate::client::{get, open, post, request};
use crate::mock::{Behaviour, Mock, Step, event};
use crate::setup::{Setup, eventually};

#[tokio::test]
async fn an_instance_that_is_ill_gets_nothing_until_it_is_well() {
    let setup = Setup::with_flags(1, 2, "--health-interval-ms 20").await;
    setup.decode[0].set_health(500);
    let reachable = async || setup.instances().await["instances"][1]["reachable"] == true;
    eventually("it is seen to be ill", async || !reachable().await).await;
    for _ in 0..4 {
        assert_eq!(setup.whole().await.status, 200);
    }
    assert_eq!(setup.decode[0].count(), 0);
    let health = get(setup.proxy, "/healthcheck").await.json();
    assert_eq!(health["decode_instances_up"], 1);
    setup.decode[0].set_health(404);
    eventually("it is well again", reachable).await;
    for _ in 0..4 {
        assert_eq!(setup.whole().await.status, 200);
    }
    assert!(
        setup.decode[0].count() > 0,
        "an instance without the route is well"
    );
}

#[tokio::test]
async fn an_instance_that_was_restarted_is_used_again() {
    let mut setup = Setup::with_flags(1, 1, "--health-interval-ms 20").await;
    assert_eq!(setup.stream().await.status, 200);
    setup.prefill[0].kill().await;
    eventually("the proxy is unavailable", async || {
        get(setup.proxy, "/healthcheck").await.status == 503
    })
    .await;
    setup.prefill[0] = Mock::start_at("p0", setup.prefill[0].address).await;
    eventually("the proxy is well", async || {
        get(setup.proxy, "/healthcheck").await.status == 200
    })
    .await;
    assert_eq!(setup.stream().await.status, 200);
    setup.is_clean().await;
}

#[tokio::test]
async fn told_to_stop_it_lets_requests_end_and_takes_no_more() {
    let setup = Setup::new(1, 1).await;
    let steps = vec![event(false, " one", None), Step::Stall];
    setup.decode[0].behave(Behaviour::Script("text/event-stream", steps));
    let body = json!({"prompt": "p", "stream": true}).to_string();
    let under_way = open(setup.proxy, request("POST", "/v1/completions", &[], body)).await;
    setup.stop.stop();
    eventually("nobody is accepted", async || {
        TcpStream::connect(setup.proxy).await.is_err()
    })
    .await;
    assert!(!setup.served.is_finished(), "a request is under way");
    drop(under_way);
    assert!(setup.served.await.unwrap(), "all requests have ended");
}

#[tokio::test]
async fn what_doesn_t_end_is_left_after_the_drain_time() {
    let setup = Setup::with_flags(1, 1, "--drain-timeout-ms 50").await;
    setup.prefill[0].behave(Behaviour::Hang);
    let proxy = setup.proxy;
    let _waiting = tokio::spawn(async move { post(proxy, "/v1/completions", &json!({"prompt": "p"})).await });
    eventually("it is under way", async || setup.prefill[0].count() == 1).await;
    setup.stop.stop();
    assert!(!setup.served.await.unwrap());
}

#[tokio::test]
async fn many_streams_at_once_all_end_well() {
    let setup = Setup::new(2, 2).await;
    let proxy = setup.proxy;
    let clients: Vec<_> = (0..200)
        .map(|index| {
            tokio::spawn(async move {
                let body = json!({"prompt": format!("prompt {index}"), "stream": index % 2 == 0});
                let reply = post(proxy, "/v1/completions", &body).await;
                assert_eq!(reply.status, 200);
                assert!(reply.ended);
            })
        })
        .collect();
    for client in clients {
        client.await.unwrap();
    }
    setup.is_clean().await;
}
