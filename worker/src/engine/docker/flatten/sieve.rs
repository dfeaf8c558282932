//! Takes entries out of a tar that passes by, and leaves every other byte as it is.
//!
//! Nothing is read into structures and written again: what this does not know (extended attributes, sparse files,
//! another writer's records) arrives as it came. The state is one header and the records before it.

use bytes::{Buf, Bytes, BytesMut};

/// What a tar is made of.
const BLOCK: usize = 512;

/// Of the records in front of one header. Docker's writer makes about a kilobyte; a path and some attributes of the
/// longest kind fit many times.
const RECORDS_BYTES_MAX: u64 = 1 << 20;

/// Two blocks of zeros end a tar.
const END_BLOCKS: u8 = 2;

/// What a header says, as far as it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry<'a> {
    /// As it stands in the tar, without a `/` at the end.
    pub(super) path: &'a [u8],
    /// `b'0'` a file, `b'2'` a symbolic link, `b'5'` a directory, …
    pub(super) kind: u8,
    pub(super) size: u64,
    pub(super) link: &'a [u8],
    /// Permission bits.
    pub(super) mode: u64,
    /// Seconds since the Unix epoch.
    pub(super) mtime: u64,
}

/// What is not a tar.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum SieveError {
    #[error("a header's number cannot be read")]
    Number,
    #[error("{0} bytes of records before one header")]
    Records(u64),
    #[error("it ends early")]
    Short,
}

/// Where in the tar it stands.
#[derive(Debug)]
enum At {
    /// A header, of which this much is here.
    Header(BytesMut),
    /// So many bytes of an entry that goes through.
    Through(u64),
    /// So many bytes of an entry that is taken out.
    Out(u64),
    /// So many bytes of records that belong to the next header.
    Records(u64),
}

/// Decides with `drop` about each entry with a short name; one whose name needs a record of its own goes through.
#[derive(Debug)]
pub(super) struct Sieve<F> {
    at: At,
    /// Headers of records and the records, until the header comes that they belong to.
    pending: BytesMut,
    /// Where in `pending` the records themselves begin.
    records_from: usize,
    size: Option<u64>,
    named: bool,
    zeros: u8,
    drop: F,
}

impl<F: FnMut(Entry<'_>) -> bool> Sieve<F> {
    pub(super) fn new(drop: F) -> Self {
        let at = At::Header(BytesMut::with_capacity(BLOCK));
        Self { at, pending: BytesMut::new(), records_from: 0, size: None, named: false, zeros: 0, drop }
    }

    /// The next piece of the tar; what of it goes on.
    pub(super) fn pass(&mut self, mut input: Bytes) -> Result<BytesMut, SieveError> {
        let mut output = BytesMut::with_capacity(input.len() + self.pending.len() + BLOCK);
        while !input.is_empty() {
            if self.zeros == END_BLOCKS {
                // Behind the end stands only what fills up a record.
                output.extend_from_slice(&input);
                break;
            }
            let taken = |left: u64| usize::try_from(left).unwrap_or(usize::MAX).min(input.len());
            match &mut self.at {
                At::Header(header) => {
                    let len = (BLOCK - header.len()).min(input.len());
                    header.extend_from_slice(&input.split_to(len));
                    if header.len() == BLOCK {
                        let header = header.split();
                        self.header(&header, &mut output)?;
                    }
                }
                At::Through(left) => {
                    let piece = input.split_to(taken(*left));
                    output.extend_from_slice(&piece);
                    *left -= piece.len() as u64;
                    if *left == 0 {
                        self.at = At::Header(BytesMut::with_capacity(BLOCK));
                    }
                }
                At::Out(left) => {
                    let len = taken(*left);
                    input.advance(len);
                    *left -= len as u64;
                    if *left == 0 {
                        self.at = At::Header(BytesMut::with_capacity(BLOCK));
                    }
                }
                At::Records(left) => {
                    let piece = input.split_to(taken(*left));
                    self.pending.extend_from_slice(&piece);
                    *left -= piece.len() as u64;
                    if *left == 0 {
                        self.records()?;
                        self.at = At::Header(BytesMut::with_capacity(BLOCK));
                    }
                }
            }
        }
        Ok(output)
    }

    /// The input is over: whether it was a whole tar.
    pub(super) fn finish(&self) -> Result<(), SieveError> {
        if self.zeros == END_BLOCKS { Ok(()) } else { Err(SieveError::Short) }
    }

    fn header(&mut self, header: &[u8], output: &mut BytesMut) -> Result<(), SieveError> {
        if header.iter().all(|byte| *byte == 0) {
            self.zeros += 1;
            output.extend_from_slice(header);
            return Ok(());
        }
        self.zeros = 0;
        let kind = header[156];
        let written = number(&header[124..136])?;
        if matches!(kind, b'x' | b'L' | b'K') {
            let padded = written.next_multiple_of(BLOCK as u64);
            if padded + self.pending.len() as u64 > RECORDS_BYTES_MAX {
                return Err(SieveError::Records(padded));
            }
            self.named |= kind == b'L';
            self.pending.extend_from_slice(header);
            self.records_from = self.pending.len();
            if padded > 0 {
                self.at = At::Records(padded);
            }
            return Ok(());
        }
        let size = self.size.take().unwrap_or(written);
        // Links, devices, directories and pipes have no content, whatever stands there.
        let content = if matches!(kind, b'1'..=b'6') { 0 } else { size.next_multiple_of(BLOCK as u64) };
        let entry = Entry {
            path: text(&header[..100]).strip_suffix(b"/").unwrap_or(text(&header[..100])),
            kind,
            size,
            link: text(&header[157..257]),
            mode: number(&header[100..108])? & 0o7777,
            mtime: number(&header[136..148])?,
        };
        let long = std::mem::take(&mut self.named) || header[345] != 0;
        let records = self.pending.split();
        if !long && (self.drop)(entry) {
            if content > 0 {
                self.at = At::Out(content);
            }
        } else {
            output.extend_from_slice(&records);
            output.extend_from_slice(header);
            if content > 0 {
                self.at = At::Through(content);
            }
        }
        Ok(())
    }

    /// The records of one extended header are here: those that are asked for.
    fn records(&mut self) -> Result<(), SieveError> {
        let header = &self.pending[self.records_from - BLOCK..self.records_from];
        if header[156] != b'x' {
            return Ok(());
        }
        let size = number(&header[124..136])?;
        let end = self.records_from + usize::try_from(size).map_err(|_| SieveError::Number)?;
        let mut rest = &self.pending[self.records_from..end];
        while !rest.is_empty() {
            // "<length of all of it> <key>=<value>\n"
            let space = rest.iter().position(|byte| *byte == b' ').ok_or(SieveError::Number)?;
            let len = decimal(&rest[..space])?;
            let len = usize::try_from(len).ok().filter(|len| (space + 1..=rest.len()).contains(len));
            let len = len.ok_or(SieveError::Number)?;
            let record = &rest[space + 1..len];
            if record.starts_with(b"path=") {
                self.named = true;
            } else if let Some(value) = record.strip_prefix(b"size=") {
                self.size = Some(decimal(value.strip_suffix(b"\n").unwrap_or(value))?);
            }
            rest = &rest[len..];
        }
        Ok(())
    }
}

/// Up to the first zero.
fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn decimal(digits: &[u8]) -> Result<u64, SieveError> {
    let value: Option<u64> = std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok());
    sane(value.ok_or(SieveError::Number)?)
}

/// Octal digits, or big-endian bytes behind a marker (GNU's way with what is too long for digits).
fn number(field: &[u8]) -> Result<u64, SieveError> {
    if field[0] & 0x80 != 0 {
        let fits = field[0] == 0x80 && field[1..field.len().saturating_sub(8).max(1)].iter().all(|byte| *byte == 0);
        // A time before 1970 is the only negative number; nobody asks for it.
        let negative = field[0] == 0xff;
        let bytes = &field[field.len().saturating_sub(8).max(1)..];
        return match (fits, negative) {
            (true, _) => sane(bytes.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte))),
            (_, true) => Ok(0),
            _ => Err(SieveError::Number),
        };
    }
    let digits = text(field).trim_ascii();
    if digits.is_empty() {
        return Ok(0);
    }
    let digits = std::str::from_utf8(digits).map_err(|_| SieveError::Number)?;
    sane(u64::from_str_radix(digits, 8).map_err(|_| SieveError::Number)?)
}

/// No file is bigger than what the kernel can address, so sums of these cannot overflow.
fn sane(value: u64) -> Result<u64, SieveError> {
    i64::try_from(value).map(|_| value).map_err(|_| SieveError::Number)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use proptest::prelude::*;

    use super::*;

    fn is(kind: tar::EntryType, size: u64, mtime: u64) -> tar::Header {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(0o755);
        header.set_mtime(mtime);
        header.set_size(size);
        header
    }

    /// A tar with everything that Docker's writer makes: records of extended attributes, long names, links.
    fn sample() -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        let file = tar::EntryType::Regular;
        tar.append_data(&mut is(file, 0, 9), ".dockerenv", &[][..]).unwrap();
        tar.append_data(&mut is(tar::EntryType::Directory, 0, 9), "etc/", &[][..]).unwrap();
        tar.append_data(&mut is(file, 700, 9), "etc/hosts", &[b'h'; 700][..]).unwrap();
        tar.append_pax_extensions([("SCHILY.xattr.security.capability", &b"\x01\x00\x00\x02="[..])]).unwrap();
        tar.append_data(&mut is(file, 513, 5), "usr/bin/ping", &[b'p'; 513][..]).unwrap();
        let long = format!("{}/etc/hosts", "d".repeat(200));
        tar.append_data(&mut is(file, 3, 9), &long, &b"abc"[..]).unwrap();
        tar.append_link(&mut is(tar::EntryType::Link, 0, 9), "usr/bin/pong", "usr/bin/ping").unwrap();
        // A name that is not ASCII stands in a record; what stands in the header may look like another one.
        tar.append_pax_extensions([("path", "étc/hosts".as_bytes())]).unwrap();
        tar.append_data(&mut is(file, 2, 9), "etc/hosts", &b"no"[..]).unwrap();
        tar.into_inner().unwrap()
    }

    fn sieved(tar: &[u8], piece: usize, drop: impl FnMut(Entry<'_>) -> bool) -> Result<Vec<u8>, SieveError> {
        let mut sieve = Sieve::new(drop);
        let mut output = Vec::new();
        for piece in tar.chunks(piece) {
            output.extend_from_slice(&sieve.pass(Bytes::copy_from_slice(piece))?);
        }
        sieve.finish().map(|()| output)
    }

    fn paths(tar: &[u8]) -> Vec<String> {
        let mut archive = tar::Archive::new(tar);
        let entries = archive.entries().unwrap();
        entries
            .map(|entry| {
                let mut entry = entry.unwrap();
                let mut content = String::new();
                entry.read_to_string(&mut content).unwrap();
                String::from_utf8(entry.path_bytes().into_owned()).unwrap()
            })
            .collect()
    }

    #[test]
    fn what_goes_through_is_every_byte_as_it_was() {
        let tar = sample();
        for piece in [1, 7, 511, 512, 513, 4096, tar.len()] {
            assert_eq!(sieved(&tar, piece, |_| false).unwrap(), tar, "in pieces of {piece}");
        }
    }

    #[test]
    fn what_is_taken_out_is_gone_with_its_content_and_records() {
        let tar = sample();
        let drop = |entry: Entry<'_>| matches!(entry.path, b".dockerenv" | b"etc/hosts" | b"usr/bin/ping");
        for piece in [1, 512, 1000] {
            let output = sieved(&tar, piece, drop).unwrap();
            let long = format!("{}/etc/hosts", "d".repeat(200));
            assert_eq!(paths(&output), ["etc/", &long, "usr/bin/pong", "étc/hosts"], "in pieces of {piece}");
            let attribute = b"security.capability";
            assert!(!output.windows(attribute.len()).any(|window| window == attribute));
        }
    }

    #[test]
    fn an_entry_is_told_as_it_stands_there() {
        let mut seen = Vec::new();
        let mut tar = tar::Builder::new(Vec::new());
        tar.append_link(&mut is(tar::EntryType::Symlink, 0, 77), "etc/mtab", "/proc/mounts").unwrap();
        sieved(&tar.into_inner().unwrap(), 512, |entry| {
            seen.push((entry.path.to_vec(), entry.kind, entry.size, entry.link.to_vec(), entry.mode, entry.mtime));
            false
        })
        .unwrap();
        assert_eq!(seen, [(b"etc/mtab".to_vec(), b'2', 0, b"/proc/mounts".to_vec(), 0o755, 77)]);
    }

    #[test]
    fn a_size_too_big_for_its_field_is_read_from_where_it_stands() {
        // 9 GiB: in a record, as Go writes it, and in binary, as GNU does.
        let size = 9_u64 << 30;
        let mut record = tar::Builder::new(Vec::new());
        record.append_pax_extensions([("size", size.to_string().as_bytes())]).unwrap();
        let mut head = record.into_inner().unwrap();
        head.truncate(2 * BLOCK);
        let mut header = is(tar::EntryType::Regular, 0, 1);
        header.set_path("big").unwrap();
        header.set_cksum();
        head.extend_from_slice(header.as_bytes());
        let mut binary = tar::Header::new_gnu();
        binary.set_path("big").unwrap();
        binary.set_size(size);
        for head in [head, binary.as_bytes().to_vec()] {
            let mut seen = 0;
            let mut sieve = Sieve::new(|entry: Entry<'_>| {
                seen = entry.size;
                true
            });
            assert!(sieve.pass(Bytes::from(head)).unwrap().is_empty());
            assert!(matches!(sieve.at, At::Out(left) if left == size));
            drop(sieve);
            assert_eq!(seen, size);
        }
    }

    #[test]
    fn a_tar_that_breaks_off_is_told_from_a_whole_one() {
        let tar = sample();
        for cut in [0, 100, 512, 1024, tar.len() - 512] {
            assert_eq!(sieved(&tar[..cut], 512, |_| false), Err(SieveError::Short), "cut at {cut}");
        }
        // What an Engine may write behind half a tar.
        let mut half = tar[..1024].to_vec();
        half.extend_from_slice(&[b'{'; 512]);
        assert_eq!(sieved(&half, 512, |_| false), Err(SieveError::Number));
    }

    #[test]
    fn records_without_end_are_refused() {
        let mut header = is(tar::EntryType::XHeader, 1 << 30, 1);
        header.set_cksum();
        assert_eq!(sieved(header.as_bytes(), 512, |_| false), Err(SieveError::Records(1 << 30)));
    }

    proptest! {
        /// Whatever comes, it ends with an answer, and how it was cut does not matter.
        #[test]
        fn noise_is_no_way_in(noise in prop::collection::vec(any::<u8>(), 0..4096), cut in 1_usize..2048) {
            let mut tar = sample();
            let at = noise.len() % tar.len();
            for (byte, other) in tar[at..].iter_mut().zip(&noise) {
                *byte ^= other;
            }
            prop_assert_eq!(sieved(&tar, cut, |_| false), sieved(&tar, 4096, |_| false));
        }
    }
}
