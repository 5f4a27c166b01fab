//! What is not loaded, and why.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::time::Duration;

use kvstored_core::ErrorKind;

use crate::support::Directory;

fn refusal(directory: &Directory, name: &str) -> (ErrorKind, String) {
    match directory.open(name, Duration::from_secs(5), &[]) {
        Ok(_) => panic!("{name} was loaded"),
        Err(error) => (error.kind(), error.to_string()),
    }
}

#[test]
fn what_others_can_write_and_what_is_not_listed_is_refused() {
    let directory = Directory::new();
    directory.copy_memory();
    let (kind, text) = refusal(&directory, "memory");
    assert_eq!(kind, ErrorKind::NotFound, "no list: {text}");
    directory.list();
    let set = |name: &str, mode: u32| {
        fs::set_permissions(directory.path().join(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    for (name, bad, good) in [
        ("memory.so", 0o775, 0o755),
        ("SHA256SUMS", 0o646, 0o644),
        (".", 0o770, 0o700),
    ] {
        set(name, bad);
        let (kind, text) = refusal(&directory, "memory");
        assert_eq!(kind, ErrorKind::PermissionDenied, "{name}: {text}");
        assert!(text.contains(&format!("mode is {bad:o}")), "{text}");
        set(name, good);
    }
    let (kind, text) = refusal(&directory, "../memory");
    assert_eq!(kind, ErrorKind::InvalidInput, "{text}");
    symlink(
        directory.path().join("memory.so"),
        directory.path().join("other.so"),
    )
    .unwrap();
    assert_ne!(refusal(&directory, "other").0, ErrorKind::NotFound);
    // another file than the one that was listed
    let mut bytes = fs::read(directory.path().join("memory.so")).unwrap();
    bytes.push(0);
    fs::write(directory.path().join("memory.so"), bytes).unwrap();
    let (kind, text) = refusal(&directory, "memory");
    assert_eq!(kind, ErrorKind::Mismatch, "{text}");
    // and one that nobody listed
    fs::write(directory.path().join("SHA256SUMS"), "").unwrap();
    let (kind, text) = refusal(&directory, "memory");
    assert_eq!(kind, ErrorKind::PermissionDenied, "{text}");
    assert!(text.contains("doesn't list memory.so"), "{text}");
}
