use super::*;
use crate::config::{Directories, Environment, FileReport, ServeOptions, Word};

fn settings(pipeline: &str, directory: &Path) -> ServeSettings {
    let options = ServeOptions {
        pipeline: Some(pipeline.parse().unwrap()),
        storage_backends: Some(Directories(vec![directory.to_owned()])),
        cache_buffer_capacity: Some("16MiB".parse().unwrap()),
        hbm_capacity: Some("4MiB".parse().unwrap()),
        posix_capacity: Some("64MiB".parse().unwrap()),
        http: Some("off".parse::<Word<_>>().unwrap()),
        tenant_quota: vec!["*=8MiB".parse().unwrap()],
        // nobody answers there, which a node bears
        pool_master_address: Some("127.0.0.1:1".into()),
        s3_bucket: Some("blocks".into()),
        s3_endpoint: Some("http://127.0.0.1:1".into()),
        s3_allow_http: Some(true),
        global_segment_size: Some("1MiB".parse().unwrap()),
        ..ServeOptions::default()
    };
    ServeSettings::resolve(options, &FileReport::default(), &Environment::default()).unwrap()
}

#[test]
fn every_pipeline_builds() {
    let directory = tempfile::tempdir().unwrap();
    for (pipeline, tiers) in [
        ("Cache|Posix", vec!["Cache", "Posix"]),
        ("Cache|Pool|Posix", vec!["Cache", "Pool", "Posix"]),
        ("Hbm|Cache|Posix", vec!["Cache", "Hbm", "Posix"]),
        ("Hbm|Posix", vec!["Staging", "Hbm", "Posix"]),
        ("Cache|Posix|S3", vec!["Cache", "Posix", "S3"]),
        ("S3", vec!["Staging", "S3"]),
        ("Pool", vec!["Staging", "Pool"]),
        ("Cache", vec!["Cache"]),
        ("Posix", vec!["Staging", "Posix"]),
        ("Cache|Empty", vec!["Cache", "Empty"]),
        ("Empty", vec!["Staging", "Empty"]),
        ("Fake", vec!["Staging", "Fake"]),
    ] {
        let engine = build_engine(
            &settings(pipeline, &directory.path().join("blocks")),
            Runtime::system(),
        )
        .unwrap();
        assert_eq!(engine.tier_names(), tiers, "{pipeline}");
        engine.shutdown();
    }
}

#[test]
fn a_storage_directory_that_cannot_be_used_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, "not a directory").unwrap();
    let storage = file.join("below");
    let Err(error) = build_engine(&settings("Cache|Posix", &storage), Runtime::system()) else {
        panic!("built")
    };
    assert!(
        error.to_string().contains(&storage.display().to_string()),
        "{error}"
    );
}
