use kvstored_core::engine::{EngineStatistics, TierCounts, TierReport};
use kvstored_core::quota::QuotaUsage;
use kvstored_core::tier::TierStatistics;

use super::change::block_hash;
use super::*;

#[test]
fn block_hashes_are_read_whole_or_refused() {
    assert_eq!(
        block_hash(&"0aF1".repeat(8)).unwrap().as_bytes(),
        [0x0a, 0xf1].repeat(8)
    );
    assert_eq!(block_hash(&"ab".repeat(32)).unwrap().len(), 32);
    for text in [
        "",
        "ab",
        &"a".repeat(33),
        &"zz".repeat(16),
        &"ab".repeat(33),
        &"é".repeat(16),
    ] {
        let error = block_hash(text).unwrap_err();
        assert!(error.contains(&format!("\"{text}\"")), "{error}");
    }
}

#[test]
fn a_namespace_is_found_by_its_first_digits() {
    let mut other = [0xAB; 32];
    other[31] = 0;
    let all = [Namespace([0xAB; 32]), Namespace(other), Namespace([1; 32])];
    assert_eq!(by_prefix("01", &all).unwrap(), all[2]);
    assert_eq!(by_prefix(&all[1].to_string()[..63], &all).unwrap(), all[1]);
    assert_eq!(
        by_prefix("ABAB", &all).unwrap_err().kind(),
        ErrorKind::InvalidInput
    );
    assert_eq!(
        by_prefix("", &all[..1]).unwrap_err().kind(),
        ErrorKind::InvalidInput
    );
    assert_eq!(by_prefix("ff", &all).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn statistics_tell_a_degraded_tier_and_its_ratio() {
    let statistics = EngineStatistics {
        tiers: vec![TierReport {
            name: "Posix".into(),
            counts: TierCounts {
                hits: 1,
                misses: 3,
                loaded_bytes: 0,
            },
            statistics: TierStatistics {
                blocks: 77,
                degraded: true,
                degraded_reason: "directory is gone".into(),
                tenants: vec![QuotaUsage {
                    name: "team-a".into(),
                    used_bytes: 3 << 20,
                    limit_bytes: Some(4 << 20),
                }],
                ..TierStatistics::default()
            },
            pending_writes: 0,
        }],
        errors: vec![("io".into(), 2), ("busy".into(), 0)],
        ..EngineStatistics::default()
    };
    let text = stat::text(&statistics);
    for word in [
        "Posix",
        "77",
        "0.250",
        "degraded: directory is gone",
        "tenant team-a",
        "3MiB",
        "errors: io 2\n",
    ] {
        assert!(text.contains(word), "{word} in\n{text}");
    }
    assert!(!text.contains("busy"));
}

#[test]
fn no_daemon_is_exit_code_3() {
    let directory = tempfile::tempdir().unwrap();
    let arguments = CtlArguments {
        socket: Some(directory.path().join("nobody.sock")),
        json: false,
        answer_timeout_seconds: 1,
        command: Command::Daemon(DaemonCommand::Stat),
    };
    let code = run(arguments, &Environment::default()).unwrap();
    assert_eq!(
        format!("{code:?}"),
        format!("{:?}", ExitCode::from(UNREACHABLE_EXIT))
    );
}
