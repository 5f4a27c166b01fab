//! Tries a plugin for programs that have no such command themselves: `kvstored-plugin-probe DIRECTORY NAME`.

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [directory, name] = arguments.as_slice() else {
        eprintln!("usage: kvstored-plugin-probe DIRECTORY NAME");
        return ExitCode::from(2);
    };
    match kvstored_plugin_host::run_probe(Path::new(directory), name) {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
