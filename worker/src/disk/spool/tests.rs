use super::*;

fn run(offset: u64, bytes: &[u8]) -> Run {
    Run { stream: Stream::Stdout, offset, at_ms: 9, ending: Ending::Newline, bytes: bytes.to_vec() }
}

fn spool(runs: &[Run]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for run in runs {
        encode(run, Words::Commands, &mut bytes);
    }
    bytes
}

#[test]
fn p16_a_tail_torn_anywhere_is_cut_and_the_rest_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.log");
    let runs = [run(0, b"one\n"), run(4, b"\xff\0\n"), run(7, b"thr\nee\n")];
    let bytes = spool(&runs);
    let ends: Vec<usize> = (0..=3).map(|n| spool(&runs[..n]).len()).collect();
    for cut in 0..=bytes.len() {
        std::fs::write(&path, &bytes[..cut]).unwrap();
        let whole = ends.iter().rposition(|end| *end <= cut).unwrap();
        let [_, end] = recover(&path).unwrap();
        assert_eq!(end.position, ends[whole] as u64, "cut at {cut}");
        assert_eq!(end.offsets.stdout, runs[..whole].last().map_or(0, Run::end));
        let chunk = read(&File::open(&path).unwrap(), Place::default(), end.position).unwrap();
        assert_eq!(chunk.runs, runs[..whole]);
    }
}

#[test]
fn p16_a_changed_byte_is_not_taken_for_output() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.log");
    let runs = [run(0, b"one\n"), run(4, b"two\n")];
    let second = spool(&runs[..1]).len();
    for at in second..spool(&runs).len() {
        let mut bytes = spool(&runs);
        bytes[at] ^= 0x40;
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(recover(&path).unwrap()[1].position, second as u64, "byte {at}");
    }
}

#[test]
fn p16_what_was_read_of_the_command_is_known_again_also_behind_our_words_and_what_was_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.log");
    let mut bytes = spool(&[run(0, b"out\n")]);
    let stderr = |offset, bytes: &[u8]| Run { stream: Stream::Stderr, ..run(offset, bytes) };
    encode(&stderr(0, b"err\n"), Words::Commands, &mut bytes);
    encode_missing(Stream::Stdout, 100, &mut bytes);
    encode(&stderr(4, b"ours\n"), Words::Ours, &mut bytes);
    encode_missing(Stream::Stdout, 250, &mut bytes);
    std::fs::write(&path, &bytes).unwrap();
    let [_, found] = recover(&path).unwrap();
    assert_eq!(found.offsets, Offsets { stdout: 4, stderr: 9 });
    assert_eq!(found.read(), Offsets { stdout: 254, stderr: 4 });
    let chunk = read(&File::open(&path).unwrap(), Place::default(), found.position).unwrap();
    assert_eq!((chunk.runs.len(), chunk.next, chunk.torn), (3, found, false));
}

#[test]
fn p14_a_long_spool_is_read_in_pieces() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.log");
    let long = [vec![b'x'; RUN_BYTES_MAX - 1], vec![b'\n']].concat();
    let runs: Vec<Run> = (0..40).map(|n| run(n * RUN_BYTES_MAX as u64, &long)).collect();
    let bytes = spool(&runs);
    std::fs::write(&path, &bytes).unwrap();
    let file = File::open(&path).unwrap();
    let (mut place, mut seen) = (Place::default(), Vec::new());
    while place.position < bytes.len() as u64 {
        let chunk = read(&file, place, bytes.len() as u64).unwrap();
        assert!(!chunk.torn && chunk.next.position > place.position);
        place = chunk.next;
        seen.extend(chunk.runs);
    }
    assert_eq!(seen, runs);
    assert_eq!(recover(&path).unwrap()[1].offsets.stdout, 40 * RUN_BYTES_MAX as u64);
}

#[test]
fn p15_what_was_given_back_takes_no_room_and_the_rest_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.log");
    let runs: Vec<Run> = (0..40).map(|n| run(n * 60_000, &[vec![b'x'; 59_999], vec![b'\n']].concat())).collect();
    let mut bytes = spool(&runs[..20]);
    encode(&Run { stream: Stream::Stderr, ..run(0, b"ours\n") }, Words::Ours, &mut bytes);
    bytes.extend(spool(&runs[20..]));
    std::fs::write(&path, &bytes).unwrap();
    let file = File::open(&path).unwrap();
    let whole = recover(&path).unwrap();
    let mut place = Place::default();
    let blocks = |file: &File| std::os::unix::fs::MetadataExt::blocks(&file.metadata().unwrap());
    let mut before = blocks(&file);
    for _ in 0..3 {
        place = read(&file, place, bytes.len() as u64).unwrap().next;
        assert!(free(&path, place).unwrap(), "this file system gives room back");
        assert!(blocks(&file) < before);
        before = blocks(&file);
        assert_eq!(recover(&path).unwrap(), [place, whole[1]]);
        // A reader that begins at the beginning is led there.
        assert_eq!(read(&file, Place::default(), bytes.len() as u64).unwrap().next, place);
    }
    let rest = read(&file, place, bytes.len() as u64).unwrap().runs;
    let first = usize::try_from(place.offsets.stdout / 60_000).unwrap();
    assert!(place.noted == 5 && first > 20 && rest[..] == runs[first..][..rest.len()]);
    // A torn end is cut as before.
    std::fs::OpenOptions::new().append(true).open(&path).unwrap().set_len(bytes.len() as u64 - 1).unwrap();
    let [start, end] = recover(&path).unwrap();
    assert_eq!((start, end.offsets.stdout), (place, 39 * 60_000));
}
