//! Finding and loading `libascendcl`, once for the process.

use std::ffi::OsString;
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};

use kvstored_plugin::{Failure, Kind};
use libloading::Library;

use crate::failures::failure;
use crate::symbols::{Functions, OK, REPEATED_INITIALIZE};

const FILE: &str = "libascendcl.so";
/// Where installers put it.
const USUAL: [&str; 3] = [
    "/usr/local/Ascend/ascend-toolkit/latest/lib64",
    "/usr/local/Ascend/cann/lib64",
    "/usr/local/Ascend/latest/lib64",
];
/// Set by the toolkit's own scripts.
const VARIABLES: [&str; 2] = ["ASCEND_TOOLKIT_HOME", "ASCEND_HOME_PATH"];

/// Where to look, in order.
fn candidates(given: Option<&str>) -> Vec<OsString> {
    if let Some(given) = given {
        return vec![given.into()];
    }
    let mut candidates = vec![OsString::from(FILE)];
    let homes = VARIABLES.iter().filter_map(std::env::var_os);
    candidates.extend(homes.map(|home| PathBuf::from(home).join("lib64").join(FILE).into_os_string()));
    candidates.extend(
        USUAL
            .iter()
            .map(|folder| Path::new(folder).join(FILE).into_os_string()),
    );
    candidates
}

/// Loads the library, for good, and initializes it. Fails with `Unavailable`, saying where it was looked for.
pub(crate) fn load(given: Option<&str>) -> Result<Functions, Failure> {
    let mut complaints = Vec::new();
    for candidate in candidates(given) {
        // SAFETY: its initialisers run here; the operator has installed it, or named it.
        match unsafe { Library::new(&candidate) } {
            Ok(library) => {
                // its threads and callbacks outlive any use that we know of
                let library = ManuallyDrop::new(library);
                // SAFETY: it's the vendor's library by its name, and never unloaded.
                let functions = unsafe { Functions::of(&library) }.map_err(|symbol| {
                    let message = format!("{} has no {symbol}: it's too old", candidate.display());
                    Failure::new(Kind::Unsupported, message)
                })?;
                return initialize(functions);
            }
            Err(error) => complaints.push(why(&error)),
        }
    }
    Err(Failure::new(
        Kind::Unavailable,
        format!("{FILE} can't be loaded: {}", complaints.join("; ")),
    ))
}

/// What the loader says, its reason included.
fn why(error: &libloading::Error) -> String {
    let reason = std::error::Error::source(error);
    reason.map_or_else(|| error.to_string(), ToString::to_string)
}

fn initialize(functions: Functions) -> Result<Functions, Failure> {
    // SAFETY: no configuration is a configuration.
    match unsafe { (functions.initialize)(std::ptr::null()) } {
        // somebody in this process was first
        OK | REPEATED_INITIALIZE => Ok(functions),
        status => Err(failure(&functions, "aclInit", status)),
    }
}
