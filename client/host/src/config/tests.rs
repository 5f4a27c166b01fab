use std::collections::BTreeMap;

use super::*;
use clap::Parser;

const UCM_FILE: &str = r#"
ucm_connectors:
  - ucm_connector_name: "UcmPipelineStore"
    ucm_connector_config:
      store_pipeline: "Cache|Posix"
      storage_backends: "/mnt/test1"          # ':' separates several
      cache_buffer_capacity_gb: 64
enable_event_sync: true
use_layerwise: true
"#;

#[derive(Parser)]
struct TestCli {
    #[command(flatten)]
    serve: ServeArguments,
}

fn machine() -> Environment {
    Environment {
        user: 1000,
        memory_bytes: 512 << 30,
        home: Some("/home/someone".into()),
        ..Environment::default()
    }
}

fn flags(arguments: &[&str]) -> ServeOptions {
    TestCli::try_parse_from(std::iter::once(&"kvstored").chain(arguments))
        .unwrap()
        .serve
        .options
}

pub(super) fn resolve(arguments: &[&str], text: &str) -> ServeSettings {
    let report = FileReport::parse(text).unwrap();
    assert_eq!(report.problems, []);
    ServeSettings::resolve(flags(arguments), &report, &machine()).unwrap()
}

/// The settings on some machine, or every problem.
pub(super) fn resolve_with(
    arguments: &[&str],
    text: &str,
    environment: &Environment,
) -> Result<ServeSettings, Vec<Problem>> {
    let report = FileReport::parse(text).unwrap();
    ServeSettings::resolve(flags(arguments), &report, environment)
}

/// What is wrong with a document, in words, problems of the whole included.
fn problems(text: &str) -> Vec<String> {
    let report = FileReport::parse(text).unwrap();
    let mut all: Vec<String> = report.problems.iter().map(ToString::to_string).collect();
    if let Err(more) = ServeSettings::resolve(ServeOptions::default(), &report, &machine()) {
        all.extend(more.iter().map(ToString::to_string));
    }
    all
}

#[test]
fn ucms_file_works_as_it_is() {
    let report = FileReport::parse(UCM_FILE).unwrap();
    assert_eq!(report.problems, []);
    let keys: Vec<&str> = report.remarks.iter().map(|remark| remark.key.as_str()).collect();
    assert_eq!(keys, ["enable_event_sync", "use_layerwise"]);
    let settings = ServeSettings::resolve(ServeOptions::default(), &report, &machine()).unwrap();
    assert_eq!(settings.pipeline.to_string(), "Cache|Posix");
    assert_eq!(settings.storage_directories, [PathBuf::from("/mnt/test1")]);
    assert_eq!(settings.cache_capacity_bytes, 64 << 30);
    assert_eq!(settings.origin("cache_buffer_capacity"), Origin::File);
    assert_eq!(settings.origin("http"), Origin::Default);
}

#[test]
fn a_misspelt_key_is_named_with_the_meant_one() {
    let text = UCM_FILE
        .replace("cache_buffer_capacity_gb", "cache_buffer_capcity_gb")
        .replace("use_layerwise", "use_layer_wise");
    let report = FileReport::parse(&text).unwrap();
    let all: Vec<String> = report.problems.iter().map(ToString::to_string).collect();
    assert_eq!(
        all,
        [
            "line 7: ucm_connectors[0].ucm_connector_config.cache_buffer_capcity_gb = 64: unknown key; did you mean \
             cache_buffer_capacity_gb?",
            "line 9: use_layer_wise = true: unknown key; did you mean use_layerwise?",
        ]
    );
    assert!(
        report
            .problems
            .iter()
            .all(|problem| problem.severity == Severity::Unknown)
    );
    assert!(
        ServeSettings::resolve(ServeOptions::default(), &report, &machine()).is_ok(),
        "start-up goes on"
    );
}

#[test]
fn a_key_in_the_wrong_place_is_sent_to_the_right_one() {
    let all = problems("store_pipeline: Posix\n");
    assert!(all[0].contains("belongs in ucm_connector_config"), "{all:?}");
    let all = problems(&UCM_FILE.replace("store_pipeline", "pipeline"));
    assert!(all[0].contains("belongs in the top level"), "{all:?}");
}

#[test]
fn wrong_values_name_key_value_and_line() {
    for (text, words) in [
        ("http: [1]\n", ["line 1: http = [1]", "expected a string"]),
        (
            "\nposix_tail_interval_ms: soon\n",
            ["line 2: posix_tail_interval_ms = \"soon\"", "expected u64"],
        ),
        (
            "cache_buffer_capacity_gb: -1\n",
            ["cache_buffer_capacity_gb = -1", "negative"],
        ),
        (
            "cache_buffer_capacity: -5MiB\n",
            ["cache_buffer_capacity = \"-5MiB\"", "negative"],
        ),
        (
            "cache_buffer_capacity: -5\n",
            ["cache_buffer_capacity = -5", "negative"],
        ),
        (
            "posix_capacity: 3 parsecs\n",
            ["posix_capacity = \"3 parsecs\"", "unknown unit"],
        ),
        (
            "pipeline: Cash|Posix\n",
            ["pipeline = \"Cash|Posix\"", "tier \"Cash\" is unknown"],
        ),
        (
            "pipeline: Hbm|Cache\n",
            ["hbm_capacity", "how much of the device"],
        ),
        (
            "pipeline: Cache|Ds3fs\nplugin_directory: /opt/plugins\n",
            ["storage_backends", "mount of 3FS"],
        ),
        (
            "pipeline: Posix|Ds3fs\nplugin_directory: /opt/plugins\n",
            ["plugin_setting", "ds3fs.directories"],
        ),
        (
            "io_direct: perhaps\n",
            ["io_direct = \"perhaps\"", "expected a boolean"],
        ),
        (
            "eviction_policy: clock\n",
            ["eviction_policy = \"clock\"", "known are"],
        ),
        (
            "posix_io_engine: magic\n",
            ["posix_io_engine = \"magic\"", "known are auto"],
        ),
        (
            "storage_backends: '/a::/b'\n",
            ["storage_backends", "empty directory"],
        ),
        ("storage_backends: '/a:/a'\n", ["storage_backends", "twice"]),
        ("storage_backends: {a: b}\n", ["storage_backends", "DIR[:DIR]"]),
        ("tenant_quota: {a: lots}\n", ["tenant_quota", "lots"]),
        (
            "namespace_quota: {abc: 1GiB}\n",
            ["namespace_quota = abc", "64 hexadecimal"],
        ),
        ("listen: tcp:1\n", ["listen = \"tcp:1\"", "unix:PATH"]),
        ("http: nowhere\n", ["http = \"nowhere\"", "HOST:PORT"]),
        ("ucm_connectors: {}\n", ["ucm_connectors", "a list"]),
        (
            "ucm_connectors:\n  - ucm_connector_name: Other\n",
            [
                "line 2: ucm_connectors[0].ucm_connector_name = \"Other\"",
                "UcmPipelineStore",
            ],
        ),
        ("log_level: loud\n", ["log_level = \"loud\"", "log level"]),
        // together they make no sense
        (
            "cache_buffer_capacity: 4096\n",
            ["line 1: cache_buffer_capacity = 4096", "less than one block"],
        ),
        (
            "cache_buffer_capacity: 1GiB\ncache_buffer_capacity_gb: 1\n",
            ["cache_buffer_capacity", "both given"],
        ),
        ("posix_capacity: 1KiB\n", ["posix_capacity = 1024", "too few"]),
        (
            "posix_capacity: 1GiB\nposix_segment_bytes: 2GiB\n",
            ["line 2: posix_segment_bytes", "doesn't fit"],
        ),
        (
            "posix_low_watermark: 0.95\n",
            ["posix_low_watermark = 0.95", "high watermark (0.9)"],
        ),
        ("posix_writer_id: short\n", ["posix_writer_id = short", "32"]),
        (
            "http: 0.0.0.0:9380\n",
            ["http = 0.0.0.0:9380", "--http-allow-remote"],
        ),
        (
            "drain_timeout_ms: 99999999\n",
            ["drain_timeout_ms = 99999999", "0 to"],
        ),
    ] {
        let all = problems(text);
        assert_eq!(all.len(), 1, "{text}: {all:?}");
        for word in words {
            assert!(all[0].contains(word), "{text}: {} lacks {word}", all[0]);
        }
    }
}

#[test]
fn a_cache_smaller_than_the_declared_block_is_refused() {
    let text = UCM_FILE.replace(
        "cache_buffer_capacity_gb: 64",
        "cache_buffer_capacity_gb: 0.001\n      block_size: 8388608",
    );
    let all = problems(&text);
    assert_eq!(all.len(), 1, "{all:?}");
    assert!(
        all[0].contains("cache_buffer_capacity_gb = 0.001") && all[0].contains("block_size 8388608"),
        "{all:?}"
    );
}

#[test]
fn every_problem_is_listed_not_only_the_first() {
    let all = problems("pipelin: Cache\nio_direct: 7\ncache_buffer_capacity: none\nhttp: 1\n");
    assert_eq!(all.len(), 4, "{all:?}");
}

#[test]
fn flags_come_before_the_file() {
    let file = "pipeline: Posix\ncache_buffer_capacity_gb: 3\nio_direct: false\ntenant_quota: {a: 1GiB, b: 2GiB}\nlog_level: warn\n";
    let settings = resolve(
        &[
            "--pipeline",
            "Cache|Posix",
            "--cache-buffer-capacity",
            "512MiB",
            "--tenant-quota",
            "b=5GiB",
            "--http",
            "127.0.0.1:0",
        ],
        file,
    );
    assert_eq!(settings.pipeline.to_string(), "Cache|Posix");
    assert_eq!(settings.cache_capacity_bytes, 512 << 20);
    assert!(!settings.io_direct, "what no flag says, the file says");
    assert_eq!(
        settings.tenant_quotas,
        BTreeMap::from([("a".to_owned(), 1 << 30), ("b".to_owned(), 5 << 30)])
    );
    assert_eq!(settings.http, Some("127.0.0.1:0".parse().unwrap()));
    assert_eq!(settings.log_level, "warn");
    let origin = |name| settings.origin(name);
    assert_eq!(
        [
            origin("cache_buffer_capacity"),
            origin("io_direct"),
            origin("listen")
        ],
        [Origin::Flag, Origin::File, Origin::Default]
    );
}

#[test]
fn the_environments_log_level_lies_between_file_and_flag() {
    let environment = Environment {
        log_level: Some("debug".into()),
        ..machine()
    };
    let report = FileReport::parse("log_level: warn\n").unwrap();
    let level = |arguments: &[&str]| {
        ServeSettings::resolve(flags(arguments), &report, &environment)
            .unwrap()
            .log_level
    };
    assert_eq!(level(&[]), "debug");
    assert_eq!(level(&["--log-level", "error"]), "error");
}

#[test]
fn defaults_serve_at_once() {
    let settings = ServeSettings::defaults(&machine()).unwrap();
    assert_eq!(settings.pipeline.to_string(), "Cache|Posix");
    assert_eq!(
        settings.storage_directories,
        [PathBuf::from("/home/someone/.local/share/kvstored")]
    );
    assert_eq!(settings.socket, PathBuf::from("/tmp/kvstored-1000/kvstored.sock"));
    assert_eq!(settings.http.unwrap().to_string(), "127.0.0.1:9380");
    assert_eq!(settings.cache_capacity_bytes, 128 << 30);
    assert_eq!(settings.posix_capacity_bytes, 0);
    assert_eq!(settings.drain_timeout_ms, 30_000);
    let mut names: Vec<&str> = settings.rows().iter().map(|(name, ..)| *name).collect();
    let said = names.len();
    names.dedup();
    assert_eq!(names.len(), said, "each setting is said once");
}

#[test]
fn a_buffer_larger_than_the_machine_is_cut_and_said() {
    let report = FileReport::parse(UCM_FILE).unwrap();
    let small = Environment {
        memory_bytes: 16 << 30,
        ..machine()
    };
    let settings = ServeSettings::resolve(ServeOptions::default(), &report, &small).unwrap();
    assert_eq!(settings.cache_capacity_bytes, 14 << 30);
    assert!(
        settings.notes[0].contains("cache_buffer_capacity_gb 64GiB"),
        "{:?}",
        settings.notes
    );
}

#[test]
fn http_can_be_switched_off_or_opened() {
    assert_eq!(resolve(&["--http", "off"], "").http, None);
    let open = resolve(&["--http", "0.0.0.0:9380", "--http-allow-remote"], "");
    assert_eq!(open.http.unwrap().to_string(), "0.0.0.0:9380");
    assert!(resolve(&[], "http: '[::1]:0'\n").http.unwrap().ip().is_loopback());
}

#[test]
fn the_schema_lists_every_key() {
    let schema = schema();
    let properties = schema["properties"].as_object().unwrap();
    for key in [
        "pipeline",
        "storage_backends",
        "tenant_quota",
        "http",
        "ucm_connectors",
        "use_layerwise",
    ] {
        assert!(properties.contains_key(key), "{key} in {properties:?}");
    }
    assert!(schema.to_string().contains("posix_gc_shard_sample_ratio"));
}

#[test]
fn two_forms_of_a_flag_conflict() {
    let both = ["kvstored", "--posix-capacity", "1GiB", "--posix-capacity-gb", "1"];
    assert!(TestCli::try_parse_from(both).is_err());
    assert!(TestCli::try_parse_from(["kvstored", "--pipeline", "Cash"]).is_err());
    assert!(TestCli::try_parse_from(["kvstored", "--cache-buffer-capacity=-1"]).is_err());
}
