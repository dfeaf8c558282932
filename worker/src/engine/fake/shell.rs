//! The commands of a fake container: a small language that tests are written in.
//!
//! A command is an argv, or a script behind `sh … -c` (`-e` is honoured). In a script: commands ended by newlines,
//! `;`, `&&`, `||` or `&`; quotes, `\`, comments; `$X`, `${X}`, `$?`; `X=value` and `export X=value`; `> f`, `>> f`,
//! `2> f`, `>&2`, `2>&1`; and these commands:
//!
//! | command | |
//! |---|---|
//! | `echo [-n]`, `printf`, `cat`, `seq N`, `env`, `pwd` | write; `printf` knows `%s`, `%d`, `%%`, `\n`, `\t`, `\\`, `\0NN` |
//! | `head -c N /dev/zero` | writes N zero bytes |
//! | `grep WORD FILE` | |
//! | `mkdir [-p]`, `rm [-rf]`, `test`, `[` | `-e`, `-f`, `-d`, `-z`, `-n`, `=`, `!=` |
//! | `true`, `false`, `:`, `exit [N]` | |
//! | `sleep S` | in tokio's time |
//! | `work S` | takes no time, and yet it ran for so long, if somebody asks |
//! | `C & wait` | `wait` ends early at a trapped TERM, as in a real shell; a background command is a `sleep` |
//! | `trap 'C' TERM` | without it TERM ends the command, or is ignored if that is PID 1 (there is no supervisor) |
//! | `kill -N $$` | |
//! | `oom` | the kernel's OOM killer ends it |
//! | `await F` | until a test has raised the flag `F` |
//!
//! Anything else: `not found`, 127, as a shell says.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use longshore_protocol::output::Stream;
use longshore_protocol::process::watch;
use tokio::time::Instant;

use super::container::lock;
use super::files::{Files, Node};
use super::parser::{Command, End, Part, Token, is_name_char, parse};
use super::programs::{PROGRAMS, seconds};
use super::run::Run;
use crate::engine::{CommandSpec, EngineError};

const TERM: u8 = 15;
pub(super) const KILL: u8 = 9;

/// How a process ended.
pub(super) enum Ended {
    Exited(u8),
    Signaled(u8),
}

/// Why a script stops before its end.
pub(super) enum Stop {
    Exit(u8),
    Signal(u8),
    OomKilled,
}

/// One container's process.
pub(super) struct Process {
    argv: Vec<String>,
    pub(super) env: BTreeMap<String, String>,
    pub(super) dir: String,
    pub(super) files: Arc<Mutex<Files>>,
    pub(super) run: Arc<Run>,
    pub(super) term: watch::Receiver<bool>,
    pub(super) flags: watch::Receiver<BTreeSet<String>>,
    /// PID 1, whom no signal ends that it does not listen to; only a KILL from outside.
    pub(super) init: bool,
    trap: Option<String>,
    /// Whether there is, or was, a trap: it decides what a TERM does.
    trapped: Arc<AtomicBool>,
    /// When the background commands will have ended.
    background: Option<Instant>,
    pub(super) last: u8,
}

/// Where a command's two streams go: a file's path, or a stream.
#[derive(Clone)]
pub(super) enum Sink {
    Stream(Stream),
    File(String),
}

impl Process {
    pub(super) fn new(
        command: &CommandSpec,
        init: bool,
        files: Arc<Mutex<Files>>,
        run: Arc<Run>,
        flags: watch::Receiver<BTreeSet<String>>,
    ) -> Result<Self, EngineError> {
        let program = command.argv.first().map_or("", String::as_str);
        let base = program.strip_prefix("/bin/").unwrap_or(program);
        if base != "sh" && !PROGRAMS.contains(&base) {
            let directory = lock(&files).get(&Files::resolve("", program)).is_some();
            let (words, exit) =
                if directory { ("permission denied", 126) } else { ("executable file not found in $PATH", 127) };
            return Err(EngineError::CannotStart { reason: format!("exec: \"{program}\": {words}"), exit: Some(exit) });
        }
        let dir = Files::resolve("", command.workdir.as_deref().unwrap_or("/"));
        lock(&files).make_dirs(&dir);
        let image = [("PATH", "/usr/bin:/bin"), ("HOME", "/root")];
        let image = image.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned()));
        let env = image.chain(command.env.iter().cloned()).collect();
        let (argv, term) = (command.argv.clone(), run.term.subscribe());
        let trapped = Arc::default();
        Ok(Self { argv, env, dir, files, run, term, flags, init, trap: None, trapped, background: None, last: 0 })
    }

    /// `trap '' TERM`: what it starts ignores it as well.
    pub(super) fn ignores_term(&self) -> bool {
        self.trap.as_deref() == Some("")
    }

    pub(super) fn is_init(&self) -> bool {
        self.init
    }

    /// How it ended, and whether the OOM killer did it.
    pub(super) async fn run(mut self) -> (Ended, bool) {
        let kill = self.run.kill.clone();
        let (mut term, trapped, init) = (self.term.clone(), Arc::clone(&self.trapped), self.init);
        let terminated = async move {
            // It cannot be closed: the run holds the sender.
            let _ = term.wait_for(|term| *term).await;
            if init || trapped.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
        };
        let stop = tokio::select! {
            biased;
            () = kill.cancelled() => Stop::Signal(KILL),
            () = terminated => Stop::Signal(TERM),
            stop = self.run_argv() => stop,
        };
        match stop {
            Stop::Exit(code) => (Ended::Exited(code), false),
            Stop::Signal(signal) => (Ended::Signaled(signal), false),
            Stop::OomKilled => (Ended::Signaled(KILL), true),
        }
    }

    async fn run_argv(&mut self) -> Stop {
        let argv = self.argv.clone();
        let is_shell = matches!(argv[0].as_str(), "sh" | "/bin/sh");
        let script = argv.iter().position(|arg| arg == "-c").filter(|_| is_shell).and_then(|at| argv.get(at + 1));
        let result = match script {
            Some(script) => {
                let exit_on_error = argv.iter().any(|arg| arg == "-e");
                self.run_script(script, exit_on_error).await
            }
            None if is_shell => Ok(()), // reads /dev/null
            None => self.run_program(&argv, [Sink::Stream(Stream::Stdout), Sink::Stream(Stream::Stderr)]).await,
        };
        result.err().unwrap_or(Stop::Exit(self.last))
    }

    async fn run_script(&mut self, script: &str, exit_on_error: bool) -> Result<(), Stop> {
        let mut skip = false;
        for command in parse(script) {
            if !skip {
                self.run_command(&command).await?;
                self.run_trap().await?;
            }
            // `a && b`: b only after success; `a || b`: b only after failure. A chain's value is its last command's.
            match command.end {
                End::And => skip = self.last != 0,
                End::Or => skip = self.last == 0,
                End::Plain | End::Background => {
                    if exit_on_error && self.last != 0 && !skip {
                        return Err(Stop::Exit(self.last));
                    }
                    skip = false;
                }
            }
        }
        Ok(())
    }

    /// Runs the trap of a TERM that has come.
    async fn run_trap(&mut self) -> Result<(), Stop> {
        if *self.term.borrow_and_update()
            && let Some(trap) = self.trap.take()
        {
            // No trap is left, so this does not come here again.
            Box::pin(self.run_script(&trap, false)).await?;
        }
        Ok(())
    }

    async fn run_command(&mut self, command: &Command) -> Result<(), Stop> {
        let mut words = Vec::new();
        let mut sinks = [Sink::Stream(Stream::Stdout), Sink::Stream(Stream::Stderr)];
        let mut tokens = command.tokens.iter();
        while let Some(token) = tokens.next() {
            match token {
                Token::Word(parts) => words.push(self.expand(parts)),
                Token::Duplicate { from, to } => sinks[*from] = sinks[*to].clone(),
                Token::Redirect { from, append } => {
                    let Some(Token::Word(parts)) = tokens.next() else {
                        return self.complain("sh: syntax error: a redirection to nothing", 2, &sinks).await;
                    };
                    let path = Files::resolve(&self.dir, &self.expand(parts));
                    let kept = match lock(&self.files).get(&path) {
                        Some(Node::File(bytes)) if *append => bytes.clone(),
                        _ => Bytes::new(),
                    };
                    if !lock(&self.files).put(path.clone(), Node::File(kept)) {
                        let text = format!("sh: can't create /{path}: nonexistent directory");
                        return self.complain(&text, 1, &sinks).await;
                    }
                    sinks[*from] = Sink::File(path);
                }
            }
        }
        while let Some((name, value)) = words.first().and_then(|word| assignment(word)) {
            self.env.insert(name.to_owned(), value.to_owned());
            words.remove(0);
        }
        self.last = 0;
        match (words.first().map(String::as_str), &command.end) {
            (None, _) => Ok(()),
            (Some("sleep"), End::Background) => {
                let until = Instant::now() + seconds(words.get(1));
                self.background = Some(self.background.map_or(until, |earlier| earlier.max(until)));
                Ok(())
            }
            (Some("export"), _) => {
                for (name, value) in words[1..].iter().filter_map(|word| assignment(word)) {
                    self.env.insert(name.to_owned(), value.to_owned());
                }
                Ok(())
            }
            (Some("trap"), _) => {
                self.trap = words.get(1).cloned();
                self.trapped.store(true, Ordering::Relaxed);
                Ok(())
            }
            (Some("wait"), _) => {
                self.wait().await;
                Ok(())
            }
            _ => self.run_program(&words, sinks).await,
        }
    }

    /// For the background commands, or for a TERM that is trapped.
    async fn wait(&mut self) {
        let Some(until) = self.background.take() else { return };
        let trapped = self.trap.is_some();
        tokio::select! {
            biased;
            () = tokio::time::sleep_until(until) => {}
            _ = self.term.wait_for(|term| *term), if trapped => self.last = 128 + TERM,
        }
        // `wait_for` marks the value as seen; the trap looks at the value itself.
    }

    fn expand(&self, parts: &[Part]) -> String {
        let expand = |part: &Part| match part {
            Part::Text(text) => text.clone(),
            Part::Variable(name) if name == "?" => self.last.to_string(),
            Part::Variable(name) => self.env.get(name).cloned().unwrap_or_default(),
        };
        parts.iter().map(expand).collect()
    }
}

pub(super) fn assignment(word: &str) -> Option<(&str, &str)> {
    let (name, value) = word.split_once('=')?;
    let is_name = !name.is_empty() && name.chars().all(is_name_char) && !name.starts_with(|c: char| c.is_ascii_digit());
    is_name.then_some((name, value))
}
