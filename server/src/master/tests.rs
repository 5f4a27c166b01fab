//! Administration over HTTP.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use kvstored_core::Runtime;
use kvstored_master::MasterSettings;
use kvstored_master::server::{MasterServer, ServerSettings};

use super::http::{AdminState, router};
use crate::http::HttpServer;

fn start(token: Option<&str>, admin: bool) -> HttpServer {
    let runtime = Runtime::system();
    let settings = ServerSettings {
        listen: "127.0.0.1:0".parse().unwrap(),
        token: token.map(|token| token.as_bytes().to_vec()),
        ..ServerSettings::default()
    };
    let state = AdminState {
        server: Arc::new(MasterServer::start(settings, MasterSettings::default(), runtime.clone()).unwrap()),
        authenticated: token.is_some(),
        admin,
        start_unix_ms: 1500,
    };
    HttpServer::start_router("127.0.0.1:0".parse().unwrap(), router(Arc::new(state)), &runtime).unwrap()
}

fn ask(server: &HttpServer, verb: &str, path: &str, token: Option<&str>) -> (u16, String) {
    let mut stream = TcpStream::connect(server.address()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let authorization = token.map_or(String::new(), |token| {
        format!("Authorization: Bearer {token}\r\n")
    });
    let length = if verb == "POST" {
        "Content-Length: 0\r\n"
    } else {
        ""
    };
    let request =
        format!("{verb} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{length}{authorization}\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let status = text
        .split(' ')
        .nth(1)
        .and_then(|word| word.parse().ok())
        .unwrap_or(0);
    (status, text)
}

#[test]
fn health_and_metrics_are_open() {
    let server = start(Some("secret"), true);
    assert_eq!(ask(&server, "GET", "/healthz", None).0, 200);
    let (status, text) = ask(&server, "GET", "/readyz", None);
    assert!(
        status == 200 && (text.contains("leading") || text.contains("recovering")),
        "{text}"
    );
    let (status, text) = ask(&server, "GET", "/metrics", None);
    assert_eq!(status, 200);
    for line in [
        "kvstored_master_leader 1.0",
        "kvstored_master_capacity_bytes 0.0",
        "kvstored_master_puts_started_total 0",
        "kvstored_master_start_time_seconds 1.5",
        "# EOF",
    ] {
        assert!(
            text.lines().any(|other| other == line),
            "{line} is missing in\n{text}"
        );
    }
}

#[test]
fn administration_needs_the_token() {
    let server = start(Some("secret"), true);
    let node = "0".repeat(32);
    let drain = format!("/pool/segments/{node}/drain");
    for (verb, path, answer) in [
        ("GET", "/pool/stat", 200),
        ("GET", "/pool/segments", 200),
        ("GET", "/pool/objects?limit=5", 200),
        ("POST", "/pool/remove_all", 200),
        ("POST", drain.as_str(), 404),
        ("POST", "/pool/segments/xyz/drain", 400),
    ] {
        assert_eq!(ask(&server, verb, path, None).0, 401, "{path}");
        assert_eq!(ask(&server, verb, path, Some("wrong")).0, 401, "{path}");
        assert_eq!(ask(&server, verb, path, Some("secret")).0, answer, "{path}");
    }
    assert_eq!(ask(&server, "GET", "/pool/remove_all", Some("secret")).0, 405);
}

#[test]
fn without_a_token_nothing_can_be_changed() {
    let server = start(None, true);
    assert_eq!(ask(&server, "GET", "/pool/stat", None).0, 200);
    assert_eq!(ask(&server, "POST", "/pool/remove_all", None).0, 403);
}

#[test]
fn others_are_shown_no_administration() {
    let server = start(Some("secret"), false);
    assert_eq!(ask(&server, "GET", "/pool/stat", Some("secret")).0, 403);
    assert_eq!(ask(&server, "GET", "/metrics", None).0, 200);
}
