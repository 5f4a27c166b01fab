use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use kvstored_core::engine::{EngineStatistics, Histogram, TierCounts, TierReport};
use kvstored_core::eviction::PolicyKind;
use kvstored_core::quota::QuotaUsage;
use kvstored_core::tier::{TierStatistics, TransportStatistics};

use super::*;

fn usage(name: &str, limit_bytes: Option<u64>) -> QuotaUsage {
    QuotaUsage {
        name: name.into(),
        used_bytes: 4096,
        limit_bytes,
    }
}

fn sample() -> EngineStatistics {
    let (lookup, idle) = (Histogram::default(), Histogram::default());
    lookup.record(Duration::from_micros(3));
    lookup.record(Duration::from_millis(2));
    lookup.record(Duration::from_secs(100_000));
    let tier = |name: &str, degraded: bool| TierReport {
        name: name.into(),
        counts: TierCounts {
            hits: 7,
            misses: 3,
            loaded_bytes: 7 << 20,
        },
        statistics: TierStatistics {
            allocated_bytes: 1 << 30,
            capacity_bytes: 2 << 30,
            blocks: 42,
            tenants: vec![usage("a", Some(1 << 20)), usage("b", None)],
            limited_namespaces: vec![usage("00ff", Some(1 << 20))],
            transports: vec![TransportStatistics {
                transport: "ascend".into(),
                served: degraded,
                read_bytes: 4096,
                ..TransportStatistics::default()
            }],
            degraded,
            degraded_reason: if degraded {
                "the disk is full".into()
            } else {
                String::new()
            },
            ..TierStatistics::default()
        },
        pending_writes: 5,
    };
    EngineStatistics {
        tiers: vec![tier("Cache", false), tier("Posix", true)],
        dumped_blocks: 11,
        dumped_bytes: 11 << 20,
        errors: vec![("io".into(), 2), ("corrupt".into(), 0)],
        parked_requests: 1,
        lookup: lookup.snapshot(),
        acquire: idle.snapshot(),
        ..EngineStatistics::default()
    }
}

fn serving() -> Arc<AdminState> {
    let state = AdminState::new(1_500);
    state.set_parts(Parts {
        statistics: Box::new(sample),
        shadows: Box::new(|| vec![(PolicyKind::Lru, 4, 9)]),
    });
    state.set_phase(Phase::Ready);
    state
}

#[test]
fn metrics_carry_names_units_and_labels() {
    let text = render(&serving()).unwrap();
    for line in [
        "# TYPE kvstored_tier_allocated_bytes gauge",
        "# UNIT kvstored_tier_allocated_bytes bytes",
        "kvstored_tier_allocated_bytes{tier=\"Cache\"} 1073741824.0",
        "kvstored_tier_capacity_bytes{tier=\"Posix\"} 2147483648.0",
        "kvstored_tier_degraded{tier=\"Posix\"} 1.0",
        "kvstored_tier_degraded{tier=\"Cache\"} 0.0",
        "kvstored_tier_pending_writes{tier=\"Cache\"} 5.0",
        "kvstored_tier_hits_total{tier=\"Posix\"} 7",
        "kvstored_tier_loaded_bytes_total{tier=\"Cache\"} 7340032",
        "kvstored_tier_transport_read_bytes_total{tier=\"Cache\",transport=\"ascend\",side=\"requested\"} 4096",
        "kvstored_tier_transport_failures_total{tier=\"Posix\",transport=\"ascend\",side=\"served\"} 0",
        "kvstored_tier_tenant_used_bytes{tier=\"Cache\",tenant=\"b\"} 4096.0",
        "kvstored_tier_tenant_quota_bytes{tier=\"Posix\",tenant=\"a\"} 1048576.0",
        "kvstored_tier_tenant_quota_bytes{tier=\"Posix\",tenant=\"b\"} 0.0",
        "kvstored_tier_namespace_used_bytes{tier=\"Posix\",namespace=\"00ff\"} 4096.0",
        "kvstored_tier_namespace_quota_bytes{tier=\"Cache\",namespace=\"00ff\"} 1048576.0",
        "kvstored_dumped_blocks_total 11",
        "kvstored_dumped_bytes_total 11534336",
        "kvstored_errors_total{kind=\"io\"} 2",
        "kvstored_errors_total{kind=\"corrupt\"} 0",
        "kvstored_parked_requests 1.0",
        "kvstored_shadow_hits_total{policy=\"lru\"} 4",
        "kvstored_shadow_lookups_total{policy=\"lru\"} 9",
        "kvstored_ready 1.0",
        "kvstored_start_time_seconds 1.5",
        "# EOF",
    ] {
        assert!(
            text.lines().any(|other| other == line),
            "{line} is missing in\n{text}"
        );
    }
    assert!(text.contains("kvstored_build_info{version=\""));
}

#[test]
fn histograms_are_cumulative_seconds() {
    let text = render(&serving()).unwrap();
    let count = |line: &str| -> u64 {
        let found = text
            .lines()
            .find_map(|other| other.strip_prefix(line))
            .unwrap_or_else(|| panic!("{line} in\n{text}"));
        found.trim().parse().unwrap()
    };
    assert_eq!(count("kvstored_lookup_seconds_bucket{le=\"0.000002\"}"), 0);
    assert_eq!(count("kvstored_lookup_seconds_bucket{le=\"0.000003\"}"), 1);
    assert_eq!(count("kvstored_lookup_seconds_bucket{le=\"0.004096\"}"), 2);
    assert_eq!(count("kvstored_lookup_seconds_bucket{le=\"+Inf\"}"), 3);
    assert_eq!(count("kvstored_lookup_seconds_count"), 3);
    assert_eq!(count("kvstored_acquire_seconds_bucket{le=\"+Inf\"}"), 0);
    assert_eq!(
        count("kvstored_commit_seconds_bucket{le=\"+Inf\"}"),
        0,
        "an empty snapshot is valid too"
    );
}

#[test]
fn every_metric_is_documented() {
    let page = include_str!("../../../docs/metrics.md");
    for line in render(&serving()).unwrap().lines() {
        let Some(name) = line
            .strip_prefix("# TYPE ")
            .and_then(|rest| rest.split(' ').next())
        else {
            continue;
        };
        assert!(
            page.contains(&format!("`{name}")),
            "{name} is not in docs/metrics.md"
        );
    }
}

struct Answer {
    status: u16,
    text: String,
}

fn ask(server: &HttpServer, request: &str) -> Answer {
    let mut stream = TcpStream::connect(server.address()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let status = text
        .split(' ')
        .nth(1)
        .and_then(|word| word.parse().ok())
        .unwrap_or(0);
    Answer { status, text }
}

fn get(server: &HttpServer, path: &str) -> Answer {
    ask(
        server,
        &format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
    )
}

fn start(state: &Arc<AdminState>) -> HttpServer {
    HttpServer::start(
        "127.0.0.1:0".parse().unwrap(),
        Arc::clone(state),
        &Runtime::system(),
    )
    .unwrap()
}

#[test]
fn readiness_follows_the_phase() {
    let state = AdminState::new(0);
    let server = start(&state);
    assert_eq!(get(&server, "/healthz").status, 200);
    let answer = get(&server, "/readyz");
    assert_eq!(answer.status, 503);
    assert!(answer.text.contains("starting"));
    assert_eq!(get(&server, "/stat").status, 503);
    assert!(get(&server, "/metrics").text.contains("kvstored_ready 0.0"));

    state.set_parts(Parts {
        statistics: Box::new(sample),
        shadows: Box::new(Vec::new),
    });
    state.set_phase(Phase::Ready);
    let answer = get(&server, "/readyz");
    assert_eq!(answer.status, 200);
    assert!(
        answer.text.contains("degraded: Posix: the disk is full"),
        "{}",
        answer.text
    );

    state.set_phase(Phase::Draining);
    let answer = get(&server, "/readyz");
    assert_eq!(answer.status, 503);
    assert!(answer.text.contains("draining"));
    server.stop();
}

#[test]
fn statistics_are_json_and_metrics_openmetrics() {
    let server = start(&serving());
    let answer = get(&server, "/stat");
    let json = answer.text.split_once("\r\n\r\n").unwrap().1;
    let statistics: EngineStatistics = serde_json::from_str(json).unwrap();
    assert_eq!(statistics, sample());
    let answer = get(&server, "/metrics");
    assert_eq!(answer.status, 200);
    assert!(
        answer
            .text
            .to_lowercase()
            .contains("content-type: application/openmetrics-text")
    );
    assert!(answer.text.ends_with("# EOF\n"));
    server.stop();
}

#[test]
fn what_the_endpoints_do_not_take_is_refused() {
    let server = start(&serving());
    assert_eq!(get(&server, "/nothing").status, 404);
    assert_eq!(get(&server, &format!("/{}", "x".repeat(2000))).status, 414);
    let body = "POST /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    assert_eq!(ask(&server, body).status, 405);
    for framing in ["Content-Length: 999999999999", "Transfer-Encoding: chunked"] {
        let request = format!("GET /metrics HTTP/1.1\r\nHost: x\r\n{framing}\r\n\r\n");
        assert_eq!(ask(&server, &request).status, 413, "{framing}");
    }
    assert_eq!(ask(&server, "nonsense\r\n\r\n").status, 400);
    assert_eq!(get(&server, "/healthz").status, 200, "and it lives on");
    server.stop();
}

#[test]
fn an_address_in_use_is_named() {
    let state = serving();
    let first = start(&state);
    let Err(error) = HttpServer::start(first.address(), state, &Runtime::system()) else {
        panic!("bound twice")
    };
    assert!(
        error.to_string().contains(&first.address().to_string()),
        "{error}"
    );
    first.stop();
}

#[test]
fn stopping_does_not_wait_for_idle_connections() {
    let server = start(&serving());
    let _idle = TcpStream::connect(server.address()).unwrap();
    assert_eq!(get(&server, "/healthz").status, 200);
    server.stop();
}
