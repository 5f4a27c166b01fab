//! The S3 tier's settings. Credentials are none of them: they come from the environment's `AWS_` variables alone.

use std::time::Duration;

use kvstored_core::Pipeline;
use kvstored_core::size::format_bytes;
use kvstored_object::S3Settings;

use super::options::ServeOptions;
use super::validate::Check;

/// The longest that a load or a dump may be told to wait.
const MOST_TIMEOUT_MS: u64 = 600_000;

/// Our settings over the tier's defaults.
pub(super) fn resolve(options: &ServeOptions, check: &mut Check<'_>) -> S3Settings {
    let defaults = S3Settings::default();
    let millis = |check: &mut Check<'_>, key: &str, given: Option<u64>, default: Duration| {
        let value = given.unwrap_or(default.as_millis() as u64);
        check.range(key, value, 1, MOST_TIMEOUT_MS);
        Duration::from_millis(value)
    };
    let tail = millis(
        check,
        "s3_tail_interval_ms",
        options.s3_tail_interval_ms,
        defaults.tail_interval,
    );
    let read = millis(
        check,
        "s3_read_timeout_ms",
        options.s3_read_timeout_ms,
        defaults.read_timeout,
    );
    let write = millis(
        check,
        "s3_write_timeout_ms",
        options.s3_write_timeout_ms,
        defaults.write_timeout,
    );
    let settings = S3Settings {
        bucket: options.s3_bucket.clone().unwrap_or_default(),
        prefix: options.s3_prefix.clone().unwrap_or_default(),
        endpoint: options.s3_endpoint.clone(),
        region: options.s3_region.clone(),
        allow_http: options.s3_allow_http.unwrap_or(false),
        capacity_bytes: options.s3_capacity.map_or(defaults.capacity_bytes, |size| size.0),
        object_bytes: options
            .s3_object_bytes
            .map_or(defaults.object_bytes, |size| size.0),
        tail_interval: tail,
        read_timeout: read,
        write_timeout: write,
        ..defaults
    };
    if let Some((key, what)) = settings.problem() {
        check.wrong(key, "", what);
    }
    settings
}

/// Says which settings have no effect because the pipeline has no bucket.
pub(super) fn note_without_bucket(options: &ServeOptions, pipeline: &Pipeline, notes: &mut Vec<String>) {
    let given = [
        ("s3_bucket", options.s3_bucket.is_some()),
        ("s3_prefix", options.s3_prefix.is_some()),
        ("s3_endpoint", options.s3_endpoint.is_some()),
        ("s3_capacity", options.s3_capacity.is_some()),
        ("s3_object_bytes", options.s3_object_bytes.is_some()),
    ];
    for (key, _) in given.iter().filter(|(_, given)| *given) {
        notes.push(format!("{key} has no effect: pipeline {pipeline} has no S3 tier"));
    }
}

/// Every setting as name and value, for the log.
pub(super) fn rows(settings: &S3Settings) -> Vec<(&'static str, String)> {
    let from_environment =
        |value: &Option<String>| value.clone().unwrap_or_else(|| "by environment".to_owned());
    let millis = |time: Duration| time.as_millis().to_string();
    vec![
        ("s3_bucket", settings.bucket.clone()),
        ("s3_prefix", settings.prefix.clone()),
        ("s3_endpoint", from_environment(&settings.endpoint)),
        ("s3_region", from_environment(&settings.region)),
        ("s3_allow_http", settings.allow_http.to_string()),
        ("s3_capacity", format_bytes(settings.capacity_bytes)),
        ("s3_object_bytes", format_bytes(settings.object_bytes)),
        ("s3_tail_interval_ms", millis(settings.tail_interval)),
        ("s3_read_timeout_ms", millis(settings.read_timeout)),
        ("s3_write_timeout_ms", millis(settings.write_timeout)),
    ]
}

#[cfg(test)]
mod tests {
    use crate::config::Environment;
    use crate::config::tests::resolve_with;

    fn environment() -> Environment {
        Environment {
            memory_bytes: 64 << 30,
            ..Environment::default()
        }
    }

    #[test]
    fn a_bucket_and_what_belongs_to_it_are_taken() {
        let flags = [
            "--pipeline",
            "Cache|Posix|S3",
            "--s3-bucket",
            "blocks",
            "--s3-prefix",
            "a/b",
            "--s3-endpoint",
            "http://127.0.0.1:9000",
            "--s3-allow-http",
            "--s3-capacity",
            "2GiB",
            "--s3-read-timeout-ms",
            "700",
        ];
        let settings = resolve_with(&flags, "s3_object_bytes: 8MiB\n", &environment()).unwrap();
        let s3 = settings.s3.unwrap();
        assert_eq!((s3.bucket.as_str(), s3.prefix.as_str()), ("blocks", "a/b"));
        assert_eq!((s3.capacity_bytes, s3.object_bytes), (2 << 30, 8 << 20));
        assert_eq!(s3.read_timeout.as_millis(), 700);
        assert!(s3.allow_http && s3.region.is_none());
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (arguments, word) in [
            (vec![], "s3_bucket"),
            (
                vec!["--s3-bucket", "b", "--s3-object-bytes", "1KiB"],
                "s3_object_bytes",
            ),
            (vec!["--s3-bucket", "b", "--s3-capacity", "1MiB"], "s3_capacity"),
            (vec!["--s3-bucket", "b", "--s3-prefix", "a//b"], "s3_prefix"),
            (
                vec!["--s3-bucket", "b", "--s3-tail-interval-ms", "0"],
                "s3_tail_interval_ms",
            ),
        ] {
            let mut all = vec!["--pipeline", "Cache|S3"];
            all.extend(arguments);
            let problems = resolve_with(&all, "", &environment()).unwrap_err();
            assert!(
                problems.iter().any(|problem| problem.key == word),
                "{word}: {problems:?}"
            );
        }
    }

    #[test]
    fn without_a_bucket_its_settings_are_noted() {
        let settings = resolve_with(&["--s3-bucket", "b"], "", &environment()).unwrap();
        assert!(settings.s3.is_none());
        assert!(
            settings.notes.iter().any(|note| note.contains("s3_bucket")),
            "{:?}",
            settings.notes
        );
    }
}
