//! Clients that send what they shouldn't, or as slowly as they can.

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::client::{HANG, get, post, raw, request, send};
use crate::mock::{Behaviour, Step};
use crate::setup::{Setup, eventually};

#[tokio::test]
async fn malformed_json_is_refused_here() {
    let setup = Setup::new(1, 1).await;
    for body in [
        "",
        "{",
        "[]",
        "null",
        "{\"prompt\":\"p\"}}",
        "{\"stream\":\"yes\"}",
        "\u{0}",
    ] {
        let reply = send(
            setup.proxy,
            request("POST", "/v1/completions", &[], body.to_owned()),
        )
        .await;
        assert_eq!(reply.status, 400, "{body}");
        assert!(!reply.message().is_empty());
    }
    assert_eq!(setup.prefill[0].count(), 0);
    setup.is_clean().await;
}

#[tokio::test]
async fn a_body_that_is_too_large_is_refused_before_it_is_read() {
    let setup = Setup::with_flags(1, 1, "--max-body-bytes 1000").await;
    let head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 104857600\r\n\r\n";
    assert!(
        raw(setup.proxy, head.as_bytes())
            .await
            .starts_with("HTTP/1.1 413 ")
    );

    let chunk = format!("3e8\r\n{}\r\n", "x".repeat(1000));
    let chunked = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n{chunk}{chunk}"
    );
    assert!(
        raw(setup.proxy, chunked.as_bytes())
            .await
            .starts_with("HTTP/1.1 413 ")
    );
    let fits = json!({"prompt": "p".repeat(900)});
    assert_eq!(post(setup.proxy, "/v1/completions", &fits).await.status, 200);
    setup.is_clean().await;
}

#[tokio::test]
async fn a_body_of_a_hundred_megabytes_is_not_taken_in() {
    let setup = Setup::new(1, 1).await;
    let mut stream = TcpStream::connect(setup.proxy).await.unwrap();
    let chunk = format!("100000\r\n{}\r\n", " ".repeat(1 << 20));
    let head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n";
    let (mut reading, mut writing) = stream.split();
    let send = async {
        writing.write_all(head.as_bytes()).await.unwrap();
        for _ in 0..100 {
            if writing.write_all(chunk.as_bytes()).await.is_err() {
                return true;
            }
        }
        false
    };
    let mut answer = [0; 13];
    let read = async { reading.read_exact(&mut answer).await };
    let (was_cut_off, read) = timeout(HANG, async { tokio::join!(send, read) }).await.unwrap();
    assert!(was_cut_off, "most of it was never read");
    // the reset that follows may overtake the answer
    if read.is_ok() {
        assert_eq!(&answer, b"HTTP/1.1 413 ");
    }
    assert_eq!(setup.prefill[0].count(), 0);
    assert_eq!(get(setup.proxy, "/healthcheck").await.status, 200);
    setup.is_clean().await;
}

#[tokio::test]
async fn a_large_prompt_arrives_whole() {
    let setup = Setup::new(1, 1).await;
    let prompt = "long \"prompt\" ".repeat(500_000);
    let body = json!({"model": "m", "prompt": prompt, "stream": true});
    assert_eq!(setup.complete(&body).await.status, 200);
    assert_eq!(setup.prefill[0].seen()[0].body["prompt"], prompt.as_str());
    assert_eq!(setup.decode[0].seen()[0].body["prompt"], prompt.as_str());
    setup.is_clean().await;
}

#[tokio::test]
async fn bodies_together_are_bounded() {
    let setup = Setup::with_flags(1, 1, "--max-body-bytes 1000 --max-held-bytes 1500").await;
    setup.prefill[0].behave(Behaviour::Hang);
    let proxy = setup.proxy;
    let body = json!({"prompt": "p".repeat(900)});
    let first = tokio::spawn({
        let body = body.clone();
        async move { post(proxy, "/v1/completions", &body).await }
    });
    eventually("the first is under way", async || setup.prefill[0].count() == 1).await;
    assert_eq!(post(proxy, "/v1/completions", &body).await.status, 503);
    first.abort();
    setup.is_clean().await;
}

#[tokio::test]
async fn headers_that_contradict_each_other_are_refused() {
    let setup = Setup::new(1, 1).await;
    for headers in [
        "content-length: 2\r\ncontent-length: 3",
        "content-length: 2, 2",
        "content-length: -2",
        "content-length: 2\r\ntransfer-encoding: gzip",
        "authorization: a\r\nauthorization: b\r\ncontent-length: 2",
        "host: other\r\ncontent-length: 2",
        "x-request-id: a\r\nx-request-id: b\r\ncontent-length: 2",
    ] {
        let text = format!("POST /v1/completions HTTP/1.1\r\nhost: x\r\n{headers}\r\n\r\n{{}}");
        let answer = raw(setup.proxy, text.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{headers}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1").count(), 1, "nothing follows: {answer}");
    }
    let head = format!(
        "GET /healthcheck HTTP/1.1\r\nhost: x\r\n{}\r\n",
        "x: y\r\n".repeat(200)
    );
    assert!(
        raw(setup.proxy, head.as_bytes())
            .await
            .starts_with("HTTP/1.1 431 ")
    );
    assert!(
        raw(setup.proxy, b"nonsense\r\n\r\n")
            .await
            .starts_with("HTTP/1.1 400 ")
    );
    assert_eq!(setup.prefill[0].count(), 0);
    setup.is_clean().await;
}

#[tokio::test]
async fn other_routes_and_methods_are_refused() {
    let setup = Setup::new(1, 1).await;
    assert_eq!(get(setup.proxy, "/v1/embeddings").await.status, 404);
    assert_eq!(get(setup.proxy, "/").await.status, 404);
    let reply = get(setup.proxy, "/v1/completions").await;
    assert_eq!(
        (reply.status.as_u16(), &reply.headers["allow"]),
        (405, &"POST".parse().unwrap())
    );
    let reply = post(setup.proxy, "/metrics", &json!({})).await;
    assert_eq!(
        (reply.status.as_u16(), &reply.headers["allow"]),
        (405, &"GET".parse().unwrap())
    );
}

#[tokio::test]
async fn a_client_that_sends_slowly_is_let_go() {
    let setup = Setup::with_flags(1, 1, "--client-timeout-ms 200").await;
    // nothing, half a head, half a body
    let body = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n{";
    for (bytes, answer) in [("", ""), ("POST /v1/comp", ""), (body, "HTTP/1.1 408 ")] {
        let mut stream = TcpStream::connect(setup.proxy).await.unwrap();
        stream.write_all(bytes.as_bytes()).await.unwrap();
        let mut text = Vec::new();
        let _ = timeout(HANG, stream.read_to_end(&mut text)).await.unwrap();
        let text = String::from_utf8(text).unwrap();
        assert!(text.starts_with(answer), "{bytes}: {text}");
    }
    // a byte now and then is no better
    let mut stream = TcpStream::connect(setup.proxy).await.unwrap();
    stream.write_all(body.as_bytes()).await.unwrap();
    let trickle = timeout(HANG, async {
        while stream.write_all(b" ").await.is_ok() {
            sleep(std::time::Duration::from_millis(20)).await;
        }
    });
    assert!(trickle.await.is_ok());
    setup.is_clean().await;
}

#[tokio::test]
async fn a_client_that_reads_nothing_is_let_go() {
    let setup = Setup::with_flags(1, 1, "--client-timeout-ms 300").await;
    let event = format!("data: {}\n\n", "x".repeat(100_000));
    setup.decode[0].behave(Behaviour::Script(
        "text/event-stream",
        vec![Step::Data(event); 1000],
    ));
    let mut stream = TcpStream::connect(setup.proxy).await.unwrap();
    let body = json!({"prompt": "p", "stream": true}).to_string();
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    eventually("the instance is let go", async || {
        setup.decode[0].cancelled() == 1
    })
    .await;
    setup.is_clean().await;
    drop(stream);
}

#[tokio::test]
async fn a_client_that_hangs_up_in_its_body_leaves_nothing() {
    let setup = Setup::new(1, 1).await;
    let mut stream = TcpStream::connect(setup.proxy).await.unwrap();
    let head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{\"prompt\"";
    stream.write_all(head.as_bytes()).await.unwrap();
    drop(stream);
    setup.is_clean().await;
    assert_eq!(setup.prefill[0].count(), 0);
}
