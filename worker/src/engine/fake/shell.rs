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
//! | `mkdir [-p]`, `rm [-rf]`, `test`, `[` | `-e`, `-f`, `-d`, `-z`, `-n`, `=`, `!=` |
//! | `true`, `false`, `:`, `exit [N]` | |
//! | `sleep S` | in tokio's time |
//! | `C & wait` | `wait` ends early at a trapped TERM, as in a real shell; a background command is a `sleep` |
//! | `trap 'C' TERM` | without it TERM is ignored: the command is PID 1 |
//! | `oom` | the kernel's OOM killer ends it |
//!
//! Anything else: `not found`, 127, as a shell says.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use longshore_protocol::output::Stream;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::files::{Files, Node};
use super::parser::{Command, End, Part, Token, is_name_char, parse};
use super::{EngineError, lock};
use crate::engine::ContainerSpec;

/// The most bytes in one piece of output, as `Running::output` promises.
const PIECE_BYTES_MAX: usize = 64 * 1024;

const PROGRAMS: [&str; 17] = [
    ":", "[", "cat", "echo", "env", "exit", "false", "head", "mkdir", "oom", "printf", "pwd", "rm", "seq", "sleep",
    "test", "true",
];

/// How a process ended.
pub(super) enum Ended {
    Exited(u8),
    Killed,
    OomKilled,
}

/// Why a script stops before its end.
enum Stop {
    Exit(u8),
    Killed,
    OomKilled,
}

/// One container's process.
pub(super) struct Process {
    argv: Vec<String>,
    env: BTreeMap<String, String>,
    dir: String,
    files: Arc<Mutex<Files>>,
    output: mpsc::Sender<(Stream, Bytes)>,
    term: watch::Receiver<bool>,
    kill: CancellationToken,
    trap: Option<String>,
    /// When the background commands will have ended.
    background: Option<Instant>,
    last: u8,
}

/// Where a command's two streams go: a file's path, or a stream.
#[derive(Clone)]
enum Sink {
    Stream(Stream),
    File(String),
}

impl Process {
    pub(super) fn new(
        spec: &ContainerSpec,
        files: Arc<Mutex<Files>>,
        output: mpsc::Sender<(Stream, Bytes)>,
        term: watch::Receiver<bool>,
        kill: CancellationToken,
    ) -> Result<Self, EngineError> {
        let program = spec.argv.first().map_or("", String::as_str);
        let base = program.strip_prefix("/bin/").unwrap_or(program);
        if base != "sh" && !PROGRAMS.contains(&base) {
            let directory = lock(&files).get(&Files::resolve("", program)).is_some();
            let (words, exit) =
                if directory { ("permission denied", 126) } else { ("executable file not found in $PATH", 127) };
            return Err(EngineError::CannotStart { reason: format!("exec: \"{program}\": {words}"), exit: Some(exit) });
        }
        let dir = Files::resolve("", spec.workdir.as_deref().unwrap_or("/"));
        lock(&files).make_dirs(&dir);
        let image = [("PATH", "/usr/bin:/bin"), ("HOME", "/root")];
        let image = image.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned()));
        let env = image.chain(spec.env.iter().cloned()).collect();
        let argv = spec.argv.clone();
        Ok(Self { argv, env, dir, files, output, term, kill, trap: None, background: None, last: 0 })
    }

    pub(super) async fn run(mut self) -> Ended {
        let kill = self.kill.clone();
        let stop = tokio::select! {
            biased;
            () = kill.cancelled() => Stop::Killed,
            stop = self.run_argv() => stop,
        };
        match stop {
            Stop::Exit(code) => Ended::Exited(code),
            Stop::Killed => Ended::Killed,
            Stop::OomKilled => Ended::OomKilled,
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

    /// Runs the trap of a TERM that has come. Without one, PID 1 ignores it.
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
            () = tokio::time::sleep_until(until) => {}
            _ = self.term.wait_for(|term| *term), if trapped => self.last = 128 + 15,
        }
        // `wait_for` marks the value as seen; the trap looks at the value itself.
    }

    async fn run_program(&mut self, argv: &[String], sinks: [Sink; 2]) -> Result<(), Stop> {
        let program = argv[0].strip_prefix("/bin/").unwrap_or(&argv[0]);
        let args: Vec<&str> = argv[1..].iter().map(String::as_str).collect();
        self.last = match (program, args.as_slice()) {
            ("true" | ":", _) => 0,
            ("false", _) => 1,
            ("exit", args) => {
                return Err(Stop::Exit(args.first().and_then(|code| code.parse().ok()).unwrap_or(self.last)));
            }
            ("oom", _) => return Err(Stop::OomKilled),
            ("sleep", _) => {
                tokio::time::sleep(seconds(argv.get(1))).await;
                0
            }
            ("echo", ["-n", words @ ..]) => self.write(&sinks[0], words.join(" ").into()).await,
            ("echo", words) => self.write(&sinks[0], format!("{}\n", words.join(" ")).into()).await,
            ("printf", [format, args @ ..]) => self.write(&sinks[0], printf(format, args).into()).await,
            ("pwd", _) => self.write(&sinks[0], format!("/{}\n", self.dir).into()).await,
            ("seq", [.., last]) => {
                let numbers = (1..=last.parse().unwrap_or(0)).map(|n: u64| n.to_string() + "\n");
                self.write(&sinks[0], numbers.collect::<String>().into()).await
            }
            ("env", _) => {
                let lines = self.env.iter().map(|(name, value)| [name, "=", value, "\n"].concat());
                self.write(&sinks[0], lines.collect::<String>().into()).await
            }
            ("head", ["-c", count, "/dev/zero"]) => {
                let mut left = count.parse().unwrap_or(0_usize);
                while left > 0 {
                    let piece = left.min(PIECE_BYTES_MAX);
                    self.write(&sinks[0], vec![0; piece].into()).await;
                    left -= piece;
                }
                0
            }
            ("cat", paths) => return self.cat(paths, &sinks).await,
            ("mkdir", args) => {
                for path in args.iter().filter(|arg| !arg.starts_with('-')) {
                    lock(&self.files).make_dirs(&Files::resolve(&self.dir, path));
                }
                0
            }
            ("rm", args) => {
                for path in args.iter().filter(|arg| !arg.starts_with('-')) {
                    lock(&self.files).remove(&Files::resolve(&self.dir, path));
                }
                0
            }
            ("[", [args @ .., "]"]) | ("test", args) => u8::from(!self.test(args)),
            _ => return self.complain(&format!("sh: {program}: not found"), 127, &sinks).await,
        };
        Ok(())
    }

    async fn cat(&mut self, paths: &[&str], sinks: &[Sink; 2]) -> Result<(), Stop> {
        let mut last = 0;
        for path in paths {
            let mut resolved = Files::resolve(&self.dir, path);
            // One step is enough for a test; a chain of links is nobody's here.
            if let Some(Node::Link(to)) = lock(&self.files).get(&resolved).cloned() {
                resolved = Files::resolve(resolved.rsplit_once('/').map_or("", |(dir, _)| dir), &to);
            }
            let found = lock(&self.files).get(&resolved).cloned();
            if let Some(Node::File(bytes)) = found {
                self.write(&sinks[0], bytes).await;
            } else {
                let text = format!("cat: can't open '{path}': No such file or directory");
                self.complain(&text, 1, sinks).await?;
                last = 1;
            }
        }
        self.last = last;
        Ok(())
    }

    fn test(&self, args: &[&str]) -> bool {
        let files = lock(&self.files);
        let node = |path: &str| files.get(&Files::resolve(&self.dir, path)).cloned();
        match args {
            ["!", args @ ..] => {
                drop(files);
                !self.test(args)
            }
            ["-e", path] => node(path).is_some(),
            ["-f", path] => matches!(node(path), Some(Node::File(_))),
            ["-d", path] => matches!(node(path), Some(Node::Dir)),
            ["-z", text] => text.is_empty(),
            ["-n", text] => !text.is_empty(),
            [left, "=", right] => left == right,
            [left, "!=", right] => left != right,
            _ => false,
        }
    }

    async fn complain(&mut self, text: &str, code: u8, sinks: &[Sink; 2]) -> Result<(), Stop> {
        self.write(&sinks[1], format!("{text}\n").into()).await;
        self.last = code;
        Ok(())
    }

    /// Always succeeds: whoever does not listen misses it, and nothing else happens.
    async fn write(&self, sink: &Sink, mut bytes: Bytes) -> u8 {
        match sink {
            Sink::Stream(stream) => {
                while !bytes.is_empty() {
                    let piece = bytes.split_to(bytes.len().min(PIECE_BYTES_MAX));
                    let _ = self.output.send((*stream, piece)).await;
                }
            }
            Sink::File(path) => {
                let mut files = lock(&self.files);
                let mut content = match files.get(path) {
                    Some(Node::File(content)) => content.to_vec(),
                    _ => Vec::new(),
                };
                content.extend_from_slice(&bytes);
                files.put(path.clone(), Node::File(content.into()));
            }
        }
        0
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

fn assignment(word: &str) -> Option<(&str, &str)> {
    let (name, value) = word.split_once('=')?;
    let is_name = !name.is_empty() && name.chars().all(is_name_char) && !name.starts_with(|c: char| c.is_ascii_digit());
    is_name.then_some((name, value))
}

fn seconds(word: Option<&String>) -> Duration {
    let seconds = word.and_then(|word| word.parse::<f64>().ok()).unwrap_or(0.0);
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::ZERO)
}

fn printf(format: &str, args: &[&str]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut args = args.iter();
    let mut bytes: VecDeque<u8> = format.bytes().collect();
    while let Some(byte) = bytes.pop_front() {
        match (byte, bytes.front().copied()) {
            (b'%', Some(b'%')) | (b'\\', Some(b'\\')) => out.extend(bytes.pop_front()),
            (b'%', Some(b's' | b'd')) => {
                bytes.pop_front();
                out.extend_from_slice(args.next().unwrap_or(&"").as_bytes());
            }
            (b'\\', Some(b'n')) => {
                bytes.pop_front();
                out.push(b'\n');
            }
            (b'\\', Some(b't')) => {
                bytes.pop_front();
                out.push(b'\t');
            }
            (b'\\', Some(b'0'..=b'7')) => {
                let mut value = 0_u32;
                for _ in 0..3 {
                    if let Some(digit @ b'0'..=b'7') = bytes.front().copied() {
                        bytes.pop_front();
                        value = value * 8 + u32::from(digit - b'0');
                    }
                }
                out.push(u8::try_from(value & 0xff).unwrap_or_default());
            }
            _ => out.push(byte),
        }
    }
    out
}
