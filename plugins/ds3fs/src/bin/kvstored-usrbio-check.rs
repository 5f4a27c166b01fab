//! Checks a USRBIO library, on a mount of 3FS or the emulator's directory, for the rules that the tier leans on.

use std::path::PathBuf;
use std::process::ExitCode;

use kvstored_ds3fs::check;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(library), Some(directory), None) = (arguments.next(), arguments.next(), arguments.next())
    else {
        eprintln!("usage: kvstored-usrbio-check LIBRARY DIRECTORY");
        return ExitCode::from(2);
    };
    match check::run(&library.to_string_lossy(), &PathBuf::from(directory)) {
        Ok(points) => {
            for point in &points {
                println!("{point}");
            }
            let failed = points.iter().filter(|point| !point.holds).count();
            println!("{} passed, {failed} failed", points.len() - failed);
            ExitCode::from(u8::from(failed > 0))
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
