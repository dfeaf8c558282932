//! The line splitter against a model: any bytes, any cuts.

#![allow(clippy::unwrap_used)] // a panic is how a test fails

use longshore_protocol::output::{Ending, LINE_BYTES_MAX, Line, RUN_BYTES_MAX, Run, Stream};
use longshore_worker::lines::LineSplitter;
use proptest::collection::vec;
use proptest::prelude::*;

/// Splits `bytes` after pushing them in pieces of the given sizes, over and over.
fn split(bytes: &[u8], cuts: &[usize]) -> Vec<Line> {
    let mut splitter = LineSplitter::new(Stream::Stdout);
    let mut out = Vec::new();
    let mut rest = bytes;
    let mut sizes = cuts.iter().cycle();
    while !rest.is_empty() {
        let size = sizes.next().map_or(rest.len(), |size| (*size).clamp(1, rest.len()));
        let (piece, tail) = rest.split_at(size);
        splitter.push(7, piece, &mut out);
        rest = tail;
    }
    splitter.finish(7, &mut out);
    assert_eq!(splitter.bytes_read(), bytes.len() as u64);
    for run in &out {
        assert!((1..=RUN_BYTES_MAX).contains(&run.bytes.len()), "{}", run.bytes.len());
        assert_eq!(run.ending == Ending::Newline, run.bytes.last() == Some(&b'\n'));
    }
    out.iter().flat_map(Run::lines).collect()
}

fn joined(lines: &[Line]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for line in lines {
        bytes.extend_from_slice(&line.data.0);
        if line.ending == Ending::Newline {
            bytes.push(b'\n');
        }
    }
    bytes
}

fn texts(bytes: &[u8], cuts: &[usize]) -> Vec<(String, Ending)> {
    split(bytes, cuts).into_iter().map(|line| (String::from_utf8(line.data.0).unwrap(), line.ending)).collect()
}

fn line(text: &str, ending: Ending) -> (String, Ending) {
    (text.to_owned(), ending)
}

/// What must hold of every stream, however it was cut.
fn check(bytes: &[u8], cuts: &[usize]) {
    let lines = split(bytes, cuts);
    assert_eq!(lines, split(bytes, &[]), "the cuts {cuts:?} changed the lines");
    assert_eq!(joined(&lines), bytes);
    let mut offset = 0;
    for (index, line) in lines.iter().enumerate() {
        assert_eq!(line.offset, offset);
        offset = line.end();
        assert!(line.data.0.len() <= LINE_BYTES_MAX);
        assert!(!line.data.0.contains(&b'\n'));
        match line.ending {
            Ending::Newline => {}
            Ending::Split => assert!(line.data.0.len() > LINE_BYTES_MAX - 4 && index + 1 < lines.len()),
            Ending::Eof => assert!(!line.data.0.is_empty() && index + 1 == lines.len()),
        }
        if std::str::from_utf8(bytes).is_ok() {
            assert!(std::str::from_utf8(&line.data.0).is_ok(), "text was torn at {offset}");
        }
    }
    assert_eq!(offset, bytes.len() as u64);
}

#[test]
fn an_empty_stream_gives_no_line() {
    assert_eq!(split(b"", &[]), []);
}

#[test]
fn a_newline_at_the_end_makes_no_empty_line() {
    assert_eq!(texts(b"a\n", &[]), [line("a", Ending::Newline)]);
    assert_eq!(texts(b"\n\n", &[]), [line("", Ending::Newline), line("", Ending::Newline)]);
}

#[test]
fn a_last_line_without_a_newline_arrives() {
    assert_eq!(texts(b"a\nb", &[1]), [line("a", Ending::Newline), line("b", Ending::Eof)]);
}

#[test]
fn a_line_or_a_character_cut_across_pieces_arrives_whole() {
    let text = "sn\u{2603}w and \u{1F40E}\r\nnext\n";
    for size in 1..text.len() {
        let expected = [line("sn\u{2603}w and \u{1F40E}\r", Ending::Newline), line("next", Ending::Newline)];
        assert_eq!(texts(text.as_bytes(), &[size]), expected);
    }
}

#[test]
fn only_a_line_that_is_too_long_is_split() {
    let longest = "x".repeat(LINE_BYTES_MAX);
    for cuts in [&[][..], &[1], &[LINE_BYTES_MAX], &[LINE_BYTES_MAX + 1], &[4096]] {
        assert_eq!(texts(format!("{longest}\n").as_bytes(), cuts), [line(&longest, Ending::Newline)]);
        assert_eq!(texts(longest.as_bytes(), cuts), [line(&longest, Ending::Eof)]);
        let expected = [line(&longest, Ending::Split), line("y", Ending::Newline), line("z", Ending::Eof)];
        assert_eq!(texts(format!("{longest}y\nz").as_bytes(), cuts), expected);
    }
}

#[test]
fn a_split_does_not_tear_a_character() {
    for (char, ahead) in [('\u{e9}', 1), ('\u{2603}', 1), ('\u{2603}', 2), ('\u{1F40E}', 1), ('\u{1F40E}', 3)] {
        // The character begins `ahead` bytes before the limit and ends behind it.
        let head = "x".repeat(LINE_BYTES_MAX - ahead);
        let expected = [line(&head, Ending::Split), line(&format!("{char}!"), Ending::Newline)];
        for cuts in [&[][..], &[1], &[LINE_BYTES_MAX], &[LINE_BYTES_MAX + 1], &[LINE_BYTES_MAX - 1]] {
            assert_eq!(texts(format!("{head}{char}!\n").as_bytes(), cuts), expected);
        }
    }
    // One that ends exactly at the limit stays in the first piece.
    let head = format!("{}\u{2603}", "x".repeat(LINE_BYTES_MAX - 3));
    let expected = [line(&head, Ending::Split), line("y", Ending::Eof)];
    assert_eq!(texts(format!("{head}y").as_bytes(), &[]), expected);
}

/// Bytes with many newlines, much text, and some garbage.
fn short_bytes() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        Just(b"\n".to_vec()),
        "[a-z\u{e9}\u{2603}\u{1F40E}]{0,12}".prop_map(String::into_bytes),
        vec(any::<u8>(), 0..6),
    ];
    vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

/// Lines about as long as the limit: a filler (of one to four bytes a character, or garbage), a
/// length around a multiple of the limit, and a tail.
fn long_bytes() -> impl Strategy<Value = Vec<u8>> {
    let filler = prop_oneof![
        Just("x".as_bytes()),
        Just("\u{e9}".as_bytes()),
        Just("\u{2603}".as_bytes()),
        Just("\u{1F40E}".as_bytes()),
        Just(&b"\x80"[..]),
        Just(&b"\xf0"[..]),
    ];
    (filler, 1_usize..3, -6_i32..6, short_bytes(), short_bytes()).prop_map(|(filler, times, delta, head, tail)| {
        let len = (times * LINE_BYTES_MAX).saturating_add_signed(delta as isize) / filler.len();
        [head, filler.repeat(len), tail].concat()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn p14_any_bytes_in_any_cuts_come_back_exactly(bytes in short_bytes(), cuts in vec(1_usize..20, 1..20)) {
        check(&bytes, &cuts);
    }

    #[test]
    fn p14_long_lines_in_any_cuts_come_back_exactly(
        bytes in long_bytes(),
        cuts in vec(prop_oneof![1_usize..20, 4000_usize..70_000], 1..8),
    ) {
        check(&bytes, &cuts);
    }
}
