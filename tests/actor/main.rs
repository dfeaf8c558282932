//! What the steps of the end-to-end tests do: a static program without a dependency, built by the tests (see
//! `tests/src/actor.rs`) and put into their images. It looks at everything that one step could leave to the next, and
//! does everything that could be left.
//!
//! `actor VERB ARGUMENTS…` prints what came of it, errors too: a step's log is what two ways of carrying out the same
//! steps are compared by. Only [`nasty`] verbs choose their exit code.

mod act;
mod look;
mod nasty;
mod sys;

use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let Some((verb, args)) = words.split_first() else {
        eprintln!("actor VERB ARGUMENTS…");
        return ExitCode::from(64);
    };
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    if let Some(code) = nasty::run(verb, &args) {
        return ExitCode::from(code);
    }
    if verb == "look" {
        look::everything();
        return ExitCode::SUCCESS;
    }
    match act::run(verb, &args) {
        Some(Ok(said)) => println!("{verb} {}: {said}", args.join(" ")),
        Some(Err(error)) => println!("{verb} {}: {}", args.join(" "), sys::name(&error)),
        None => {
            eprintln!("actor knows no {verb} with {} arguments", args.len());
            return ExitCode::from(64);
        }
    }
    ExitCode::SUCCESS
}
