//! The flags.
#![allow(clippy::unwrap_used)]

use super::*;
use clap::Parser;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    arguments: MasterArguments,
}

fn settings(line: &str) -> Result<Settings> {
    let words = std::iter::once("master").chain(line.split_whitespace());
    let parsed = Line::try_parse_from(words).map_err(|error| Error::invalid(error.to_string()))?;
    parsed.arguments.settings()
}

#[test]
fn the_line_of_the_deployment_means_the_same() {
    let line =
        "--port 50088 --eviction_high_watermark_ratio 0.9 --eviction_ratio 0.1 --default_kv_lease_ttl 11000";
    let settings = settings(line).unwrap();
    assert_eq!(settings.server.listen, "127.0.0.1:50088".parse().unwrap());
    assert_eq!(settings.metrics, Some("127.0.0.1:9003".parse().unwrap()));
    assert_eq!(settings.master.lease, Duration::from_secs(11));
    let ratios = (
        settings.master.eviction_high_watermark_ratio,
        settings.master.eviction_ratio,
    );
    assert_eq!(format!("{ratios:?}"), "(0.9, 0.1)");
}

#[test]
fn underscores_and_hyphens_mean_the_same() {
    for line in [
        "--rpc_port=1 --metrics_port=off --client_ttl=7 --enable_ha --etcd_endpoints=a:1;b:2 --cluster_id=c",
        "--rpc-port=1 --metrics-port=off --client-ttl=7 --enable-ha=true --etcd-endpoints a:1,b:2 --cluster-id=c",
    ] {
        let settings = settings(line).unwrap();
        assert_eq!((settings.server.listen.port(), settings.metrics), (1, None));
        assert_eq!(settings.master.client_ttl, Duration::from_secs(7));
        let ha = settings.server.ha.unwrap();
        assert_eq!(
            (ha.endpoints, ha.cluster.as_str()),
            (vec!["a:1".to_owned(), "b:2".to_owned()], "c")
        );
    }
    assert!(settings("--enable_ha=false").unwrap().server.ha.is_none());
    assert!(
        !settings("--allow_evict_soft_pinned_objects=false")
            .unwrap()
            .master
            .allow_evict_soft_pinned
    );
}

#[test]
fn flags_without_effect_are_taken_and_named() {
    let settings = settings("--max_threads=8 --enable_metric_reporting --root_fs_dir /x").unwrap();
    assert_eq!(
        settings.without_effect,
        ["max_threads", "enable_metric_reporting", "root_fs_dir"]
    );
}

#[test]
fn wrong_values_are_named() {
    for (line, name) in [
        ("--eviction_ratio 2", "eviction_ratio"),
        ("--rpc_address 0.0.0.0", "token"),
        ("--metrics_address 0.0.0.0", "metrics_address"),
        ("--enable_ha", "etcd_endpoints"),
        ("--tls_certificate x", "--tls-key"),
        ("--tenant_quotas a", "TENANT=SIZE"),
        ("--token_file /nonexistent", "token"),
        ("--bogus", "--bogus"),
    ] {
        let error = settings(line).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(name), "{line}: {error}");
    }
}

#[test]
fn quotas_are_read() {
    let settings = settings("--tenant_quota 1GiB --tenant_quotas a=2MiB --tenant-quotas b=3MiB").unwrap();
    assert_eq!(settings.master.quotas.default_tenant_bytes, Some(1 << 30));
    assert_eq!(settings.master.quotas.tenants.get("b"), Some(&(3 << 20)));
}
