//! What the benchmark's steps run: one static program that is put into their image, so that no shell and no dynamic
//! linker is measured. The benchmark compiles it with `rustc` alone; it is no target of the workspace.
//!
//! ```text
//! inside stamp                prints the time of its first instruction and that of its last act
//! inside spew BYTES           writes lines of 100 bytes to stdout
//! inside count SECONDS        writes numbered lines of 100 bytes as fast as they are taken, and how many bytes that
//!                             was to stderr
//! inside burn SECONDS         the same into /dev/null, and says nothing
//! inside beat SECONDS         prints the time, ms since 1970, twice a second, and once more before it ends
//! inside tree DIR FILES BYTES writes FILES files of together BYTES into DIR
//! ```

use std::fs;
use std::io::{self, Write};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

fn main() -> io::Result<()> {
    // Before anything else: this is the "first instruction" of the rows.
    let first = now_ns();
    let args: Vec<String> = std::env::args().collect();
    let number = |at: usize| args.get(at).and_then(|text| text.parse::<usize>().ok()).unwrap_or(0);
    match args.get(1).map(String::as_str) {
        Some("stamp") => writeln!(io::stdout(), "{first} {}", now_ns()),
        Some("spew") => spew(number(2)),
        Some("count") => {
            let bytes = count(Duration::from_secs(number(2) as u64), &mut io::stdout().lock())?;
            writeln!(io::stderr(), "printed {bytes}")
        }
        Some("burn") => {
            let mut nothing = fs::OpenOptions::new().write(true).open("/dev/null")?;
            count(Duration::from_secs(number(2) as u64), &mut nothing).map(drop)
        }
        Some("beat") => beat(Duration::from_secs(number(2) as u64)),
        Some("tree") => tree(&args[2], number(3), number(4)),
        _ => Err(io::Error::other("inside stamp | spew BYTES | count | burn SECONDS | beat SECONDS | tree DIR FILES BYTES")),
    }
}

fn now_ns() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos())
}

/// Written as a program with a large stdio buffer would: 64 KiB fill a pipe. The lines repeat after 8 MiB, which is
/// more than a compressor looks back.
fn spew(bytes: usize) -> io::Result<()> {
    let mut state = SEED;
    let block: Vec<u8> = (0..80_000).flat_map(|n| line(n, &mut state)).collect();
    let mut out = io::stdout().lock();
    let mut left = bytes;
    while left > 0 {
        for piece in block.chunks(64 * 1024) {
            let piece = &piece[..left.min(piece.len())];
            out.write_all(piece)?;
            left -= piece.len();
        }
    }
    out.flush()
}

/// Every line has its number, from 0, so that whoever reads them sees that none is missing. Answers how many bytes it
/// wrote.
fn count(time: Duration, out: &mut impl Write) -> io::Result<u64> {
    let began = Instant::now();
    let mut piece = Vec::with_capacity(64 * 1024);
    let mut n = 0_u64;
    while began.elapsed() < time {
        piece.clear();
        while piece.len() + 100 <= 64 * 1024 {
            let noise = n.wrapping_mul(SEED);
            piece.extend(format!("{n:012} {noise:016x} {:<69}\n", "as fast as it can").into_bytes());
            n += 1;
        }
        out.write_all(&piece)?;
    }
    out.flush()?;
    Ok(n * 100)
}

fn beat(time: Duration) -> io::Result<()> {
    let began = Instant::now();
    loop {
        // A line a write: nothing of it waits in here.
        io::stdout().write_all(format!("{}\n", now_ns() / 1_000_000).as_bytes())?;
        let left = time.saturating_sub(began.elapsed());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(left.min(Duration::from_millis(500)));
    }
}

/// As a build prints them, 70 to 130 bytes, a third of each not to be foreseen.
fn line(n: usize, state: &mut u64) -> Vec<u8> {
    let (source, object) = (random(state), random(state));
    let mut line = format!("[{n:06}] cc -O2 -Wall -c src/{source:016x}.c -o build/{object:016x}.o");
    line.extend(std::iter::repeat_n(" -Iinclude", n % 7));
    line.push('\n');
    line.into_bytes()
}

const SEED: u64 = 0x9e37_79b9_7f4a_7c15;

/// xorshift, the same numbers every time.
fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// Bytes that do not compress, the same ones every time (xorshift): a daemon that packs gains nothing by it.
fn tree(dir: &str, files: usize, bytes: usize) -> io::Result<()> {
    let each = bytes / files.max(1);
    let mut state = SEED;
    for n in 0..files {
        let sub = format!("{dir}/d{:02}", n % 50);
        fs::create_dir_all(&sub)?;
        let mut content = Vec::with_capacity(each + 8);
        while content.len() < each {
            content.extend_from_slice(&random(&mut state).to_le_bytes());
        }
        content.truncate(each);
        fs::write(format!("{sub}/f{n:06}"), content)?;
    }
    Ok(())
}
