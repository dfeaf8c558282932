//! What the benchmark's steps run: one static program that is put into their image, so that no shell and no dynamic
//! linker is measured. The benchmark compiles it with `rustc` alone; it is no target of the workspace.
//!
//! ```text
//! inside stamp                prints the time of its first instruction and that of its last act
//! inside spew BYTES           writes lines of 100 to 700 bytes to stdout
//! inside tree DIR FILES BYTES writes FILES files of together BYTES into DIR
//! ```

use std::fs;
use std::io::{self, Write};
use std::time::{SystemTime, UNIX_EPOCH};

fn main() -> io::Result<()> {
    // Before anything else: this is the "first instruction" of the rows.
    let first = now_ns();
    let args: Vec<String> = std::env::args().collect();
    let number = |at: usize| args.get(at).and_then(|text| text.parse::<usize>().ok()).unwrap_or(0);
    match args.get(1).map(String::as_str) {
        Some("stamp") => writeln!(io::stdout(), "{first} {}", now_ns()),
        Some("spew") => spew(number(2)),
        Some("tree") => tree(&args[2], number(3), number(4)),
        _ => Err(io::Error::other("inside stamp | spew BYTES | tree DIR FILES BYTES")),
    }
}

fn now_ns() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos())
}

/// Lines of different text, written as a program with a large stdio buffer would: 64 KiB fill a pipe.
fn spew(bytes: usize) -> io::Result<()> {
    let block: Vec<u8> = (0..160).flat_map(line).collect();
    let mut out = io::stdout().lock();
    let mut left = bytes;
    while left > 0 {
        let piece = left.min(block.len());
        out.write_all(&block[..piece])?;
        left -= piece;
    }
    out.flush()
}

/// As a build prints them: each another length, 400 bytes in the mean.
fn line(n: usize) -> Vec<u8> {
    let length = 100 + n * 7919 % 601;
    let mut line = format!("[{n:06}] cc -O2 -Wall -c src/module_{n}.c -o build/part_{n}.o");
    while line.len() < length - 1 {
        line += &format!(" -Iinclude/part_{}", line.len() * n % 1000);
    }
    line.truncate(length - 1);
    line.push('\n');
    line.into_bytes()
}

/// Bytes that do not compress, the same ones every time (xorshift): a daemon that packs gains nothing by it.
fn tree(dir: &str, files: usize, bytes: usize) -> io::Result<()> {
    let each = bytes / files.max(1);
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for n in 0..files {
        let sub = format!("{dir}/d{:02}", n % 50);
        fs::create_dir_all(&sub)?;
        let mut content = Vec::with_capacity(each + 8);
        while content.len() < each {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            content.extend_from_slice(&state.to_le_bytes());
        }
        content.truncate(each);
        fs::write(format!("{sub}/f{n:06}"), content)?;
    }
    Ok(())
}
