//! Opening, allocating and settings.

use kvstored_core::ErrorKind;

use super::super::files::{allocate, open_direct, physical_bytes, sync_data};
use super::*;

#[test]
fn direct_files_are_created_only_for_writing() {
    let directory = directory();
    let path = path(&directory);
    assert_eq!(open_direct(&path, false).unwrap_err().kind(), ErrorKind::NotFound);
    open_direct(&path, true).unwrap();
    open_direct(&path, false).unwrap();
    assert!(open_direct(directory.path(), true).is_err());
}

#[test]
fn a_file_system_without_direct_io_is_used_buffered() {
    // Files of /proc refuse O_DIRECT with EINVAL.
    let (_, direct) = open_direct(std::path::Path::new("/proc/self/status"), false).unwrap();
    assert!(!direct);
}

#[test]
fn allocation_takes_physical_space_and_keeps_bytes() {
    let directory = directory();
    let (file, _) = open_direct(&path(&directory), true).unwrap();
    assert!(physical_bytes(&file.metadata().unwrap()) < 1 << 20);
    let reserved = allocate(&file, 1 << 20).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 1 << 20);
    assert_eq!(physical_bytes(&file.metadata().unwrap()) >= 1 << 20, reserved);
    allocate(&file, 4096).unwrap();
    assert_eq!(
        file.metadata().unwrap().len(),
        1 << 20,
        "allocating less doesn't shrink"
    );
    sync_data(&file).unwrap();
    assert_eq!(allocate(&file, 0).unwrap_err().kind(), ErrorKind::Io);
}

#[test]
fn settings_out_of_range_are_refused_by_name() {
    let runtime = Runtime::system();
    let wrong = [
        (
            "depth",
            IoSettings {
                depth: 0,
                ..IoSettings::default()
            },
        ),
        (
            "depth",
            IoSettings {
                depth: 5000,
                ..IoSettings::default()
            },
        ),
        (
            "queue_limit",
            IoSettings {
                queue_limit: 0,
                ..IoSettings::default()
            },
        ),
        (
            "psync_threads",
            IoSettings {
                psync_threads: 1000,
                ..IoSettings::default()
            },
        ),
    ];
    for (name, settings) in wrong {
        let Err(error) = open_io_engine(&settings, &runtime, "io-test") else {
            panic!("{name} was accepted")
        };
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.message().contains(name), "{error}");
    }
}

#[test]
fn automatic_choice_always_gives_an_engine() {
    let engine = open_io_engine(&IoSettings::default(), &Runtime::system(), "io-test").unwrap();
    assert!(["io_uring", "psync"].contains(&engine.name()));
}

#[test]
fn settings_have_defaults_and_read_names() {
    let settings: IoSettings = serde_json::from_str(r#"{"preference": "psync", "depth": 3}"#).unwrap();
    assert_eq!(
        settings,
        IoSettings {
            preference: IoPreference::Psync,
            depth: 3,
            ..IoSettings::default()
        }
    );
}
