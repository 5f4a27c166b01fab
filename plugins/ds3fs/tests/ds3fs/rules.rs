//! The emulator keeps the rules that are checked on real mounts too.

use kvstored_ds3fs::check;

use crate::support::{Mounted, library};

#[test]
fn the_emulator_keeps_all_rules() {
    let mount = Mounted::new();
    let points = check::run(&library(), &mount.path()).unwrap();
    assert_eq!(points.len(), 23);
    for point in &points {
        assert!(point.holds, "{point}");
    }
    assert!(mount.links().is_empty(), "memory was left behind");
}

#[test]
fn a_library_that_is_none_is_named() {
    let mount = Mounted::new();
    assert!(check::run("/nowhere/libhf3fs_api_shared.so", &mount.path()).is_err());
    assert!(check::run("libc.so.6", &mount.path()).is_err());
}
