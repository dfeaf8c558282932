//! The programs that [`super::shell`] lists.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;

use super::container::lock;
use super::files::{Files, Node};
use super::shell::{KILL, Process, Sink, Stop};

/// The most bytes in one piece of output, as `Running::output` promises.
const PIECE_BYTES_MAX: usize = 64 * 1024;

pub(super) const PROGRAMS: [&str; 21] = [
    ":", "[", "await", "cat", "echo", "env", "exit", "false", "grep", "head", "kill", "mkdir", "oom", "printf", "pwd",
    "rm", "seq", "sleep", "test", "true", "work",
];

impl Process {
    pub(super) async fn run_program(&mut self, argv: &[String], sinks: [Sink; 2]) -> Result<(), Stop> {
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
                tokio::select! {
                    biased;
                    () = tokio::time::sleep(seconds(argv.get(1))) => 0,
                    // A supervisor's TERM is for every process, so also for this one. The shell goes on to its trap.
                    _ = self.term.changed(), if !self.init && !self.ignores_term() => 128 + 15,
                }
            }
            ("work", _) => {
                self.run.skip(seconds(argv.get(1)));
                0
            }
            ("await", [flag, ..]) => {
                // It cannot be closed: the Engine holds the sender.
                let _ = self.flags.wait_for(|flags| flags.contains(*flag)).await;
                0
            }
            ("kill", [signal, "$$"]) => {
                // PID 1 hears from inside only what it listens to.
                if !self.init {
                    return Err(Stop::Signal(signal.trim_start_matches('-').parse().unwrap_or(KILL)));
                }
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
                // A file is copied for each piece that is appended to it.
                let max = if matches!(sinks[0], Sink::File(_)) { usize::MAX } else { PIECE_BYTES_MAX };
                while left > 0 {
                    let piece = left.min(max);
                    self.write(&sinks[0], vec![0; piece].into()).await;
                    left -= piece;
                }
                0
            }
            ("cat", paths) => return self.cat(paths, &sinks).await,
            ("grep", [word, path]) => {
                let content = match lock(&self.files).get(&Files::resolve(&self.dir, path)) {
                    Some(Node::File(bytes)) => String::from_utf8_lossy(bytes).into_owned(),
                    _ => String::new(),
                };
                let found: String = content.split_inclusive('\n').filter(|line| line.contains(word)).collect();
                let status = u8::from(found.is_empty());
                self.write(&sinks[0], found.into()).await;
                status
            }
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

    pub(super) async fn complain(&mut self, text: &str, code: u8, sinks: &[Sink; 2]) -> Result<(), Stop> {
        self.write(&sinks[1], format!("{text}\n").into()).await;
        self.last = code;
        Ok(())
    }

    /// Always succeeds, and may block for as long as nobody acknowledges it.
    async fn write(&self, sink: &Sink, mut bytes: Bytes) -> u8 {
        match sink {
            Sink::Stream(stream) => {
                while !bytes.is_empty() {
                    let piece = bytes.split_to(bytes.len().min(PIECE_BYTES_MAX));
                    self.run.write(*stream, piece).await;
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
}

pub(super) fn seconds(word: Option<&String>) -> Duration {
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
