//! Finding and loading vendor libraries, for good.

use std::ffi::OsString;
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};

use kvstored_plugin::{Failure, Kind};
use libloading::Library;

use crate::symbols::Functions;

const HIXL: &str = "libcann_hixl.so";
/// Where installers put them.
const USUAL: [&str; 3] = [
    "/usr/local/Ascend/ascend-toolkit/latest/lib64",
    "/usr/local/Ascend/cann/lib64",
    "/usr/local/Ascend/latest/lib64",
];
/// Set by the toolkit's own scripts.
const VARIABLES: [&str; 2] = ["ASCEND_TOOLKIT_HOME", "ASCEND_HOME_PATH"];

/// Where to look, in order.
fn candidates(given: Option<&str>, file: &str) -> Vec<OsString> {
    if let Some(given) = given {
        return vec![given.into()];
    }
    let mut candidates = vec![OsString::from(file)];
    let homes = VARIABLES.iter().filter_map(std::env::var_os);
    candidates.extend(homes.map(|home| PathBuf::from(home).join("lib64").join(file).into_os_string()));
    candidates.extend(
        USUAL
            .iter()
            .map(|folder| Path::new(folder).join(file).into_os_string()),
    );
    candidates
}

/// Loads a library. Fails with `Unavailable`, saying where it was looked for.
pub(crate) fn load(given: Option<&str>, file: &str) -> Result<ManuallyDrop<Library>, Failure> {
    let mut complaints = Vec::new();
    for candidate in candidates(given, file) {
        // SAFETY: its initialisers run here; the operator has installed it, or named it.
        match unsafe { Library::new(&candidate) } {
            // its threads outlive any use that we know of
            Ok(library) => return Ok(ManuallyDrop::new(library)),
            Err(error) => {
                let reason = std::error::Error::source(&error);
                complaints.push(reason.map_or_else(|| error.to_string(), ToString::to_string));
            }
        }
    }
    let message = format!("{file} can't be loaded: {}", complaints.join("; "));
    Err(Failure::new(Kind::Unavailable, message))
}

/// The functions of HIXL.
pub(crate) fn hixl(given: Option<&str>) -> Result<Functions, Failure> {
    let library = load(given, HIXL)?;
    // SAFETY: it's the vendor's library by its name, and never unloaded.
    unsafe { Functions::of(&library) }.map_err(|symbol| {
        let message = format!("{HIXL} has no {symbol}: it's too old");
        Failure::new(Kind::Unsupported, message)
    })
}
