//! What one stream wrote and the worker has not acknowledged (P16).

use std::collections::VecDeque;

use longshore_supervisor::wire::OUTPUT_BYTES_MAX;

/// Per stream. The worker acknowledges whole lines, of at most 64 KiB and their end, so much more than one of them
/// must fit, or a line would never end. Beyond it the command blocks on its pipe: a restart of the worker, some
/// seconds, costs a chatty command a pause. Charged to the container, so it is not larger.
pub(crate) const RING_BYTES_MAX: usize = 1 << 20;

/// Times of reads that are remembered; beyond it, bytes bear the time of the bytes before them. One each millisecond
/// for four seconds, in 64 KiB.
const MARKS_MAX: usize = 4096;

const _: () = assert!(RING_BYTES_MAX > OUTPUT_BYTES_MAX + 1);

/// From this offset on, bytes were read at this time.
struct Mark {
    offset: u64,
    at_ms: u64,
}

/// Bytes from `from` to `have`; those below `sent` have been sent on this connection.
#[derive(Default)]
pub(crate) struct Ring {
    bytes: VecDeque<u8>,
    marks: VecDeque<Mark>,
    from: u64,
    sent: u64,
}

/// The next bytes to send, all read at one time.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Piece<'a> {
    pub(crate) offset: u64,
    pub(crate) at_ms: u64,
    pub(crate) parts: [&'a [u8]; 2],
}

impl Piece<'_> {
    pub(crate) fn len(&self) -> usize {
        self.parts[0].len() + self.parts[1].len()
    }
}

impl Ring {
    /// The first byte that is still here.
    pub(crate) fn from(&self) -> u64 {
        self.from
    }

    /// The first byte that was not read yet.
    pub(crate) fn have(&self) -> u64 {
        self.from + self.bytes.len() as u64
    }

    /// How much may be read.
    pub(crate) fn room(&self) -> usize {
        RING_BYTES_MAX.saturating_sub(self.bytes.len())
    }

    /// Takes what was read: no more than there is room for, but for the last of a command that has ended.
    pub(crate) fn push(&mut self, bytes: &[u8], at_ms: u64) {
        let offset = self.have();
        let known = self.marks.back().is_some_and(|mark| mark.at_ms == at_ms);
        if !known && (self.marks.len() < MARKS_MAX || self.bytes.is_empty()) {
            self.marks.push_back(Mark { offset, at_ms });
        }
        self.bytes.extend(bytes);
    }

    /// The worker has everything below `upto` on its disk.
    pub(crate) fn ack(&mut self, upto: u64) {
        let upto = upto.min(self.have());
        let Some(done) = upto.checked_sub(self.from).and_then(|done| usize::try_from(done).ok()) else { return };
        self.bytes.drain(..done);
        self.from = upto;
        self.sent = self.sent.max(upto);
        while self.marks.get(1).is_some_and(|mark| mark.offset <= self.from) {
            self.marks.pop_front();
        }
    }

    /// For a new connection: nothing has been sent on it.
    pub(crate) fn rewind(&mut self) {
        self.sent = self.from;
    }

    /// What to send next; `None` if everything was sent.
    pub(crate) fn next(&self) -> Option<Piece<'_>> {
        if self.sent == self.have() {
            return None;
        }
        // INVARIANT: the first mark is at or below `from`, so one is at or below `sent`.
        let after = self.marks.partition_point(|mark| mark.offset <= self.sent);
        let at_ms = self.marks.get(after.checked_sub(1)?)?.at_ms;
        let end = self.marks.get(after).map_or(self.have(), |mark| mark.offset);
        let start = usize::try_from(self.sent - self.from).ok()?;
        let len = usize::try_from(end - self.sent).ok()?.min(OUTPUT_BYTES_MAX);
        let (front, back) = self.bytes.as_slices();
        let cut = |slice: &'_ [u8], skipped: usize| {
            let clip = |at: usize| at.saturating_sub(skipped).min(slice.len());
            clip(start)..clip(start + len)
        };
        let parts = [&front[cut(front, 0)], &back[cut(back, front.len())]];
        Some(Piece { offset: self.sent, at_ms, parts })
    }

    /// That much of [`Self::next`] was sent.
    pub(crate) fn sent(&mut self, bytes: usize) {
        self.sent = (self.sent + bytes as u64).min(self.have());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(ring: &mut Ring) -> Vec<(u64, u64, Vec<u8>)> {
        let mut taken = Vec::new();
        while let Some(piece) = ring.next() {
            let (len, bytes) = (piece.len(), piece.parts.concat());
            taken.push((piece.offset, piece.at_ms, bytes));
            ring.sent(len);
        }
        taken
    }

    #[test]
    fn bytes_come_once_with_the_time_at_which_they_were_read() {
        let mut ring = Ring::default();
        ring.push(b"ab", 1);
        ring.push(b"c", 1);
        ring.push(b"d", 2);
        assert_eq!(take(&mut ring), [(0, 1, b"abc".to_vec()), (3, 2, b"d".to_vec())]);
        assert!(ring.next().is_none());
        ring.push(b"e", 2);
        assert_eq!(take(&mut ring), [(4, 2, b"e".to_vec())]);
    }

    #[test]
    fn p16_what_is_not_acknowledged_is_sent_again() {
        let mut ring = Ring::default();
        ring.push(b"abcd", 1);
        ring.push(b"ef", 2);
        take(&mut ring);
        ring.ack(3);
        ring.rewind();
        assert_eq!(take(&mut ring), [(3, 1, b"d".to_vec()), (4, 2, b"ef".to_vec())]);
        ring.ack(5);
        ring.ack(4); // an older one says nothing
        ring.ack(99); // nor does one beyond what there is, but for what there is
        assert_eq!((ring.from(), ring.have(), ring.room()), (6, 6, RING_BYTES_MAX));
        ring.rewind();
        ring.push(b"g", 9);
        assert_eq!(take(&mut ring), [(6, 9, b"g".to_vec())]);
    }

    #[test]
    fn p16_an_acknowledgement_before_anything_was_sent_skips_it() {
        let mut ring = Ring::default();
        ring.push(b"abcd", 1);
        ring.ack(2);
        assert_eq!(take(&mut ring), [(2, 1, b"cd".to_vec())]);
    }

    #[test]
    fn a_piece_is_bounded_and_may_lie_in_two_parts() {
        let mut ring = Ring::default();
        let pattern: Vec<u8> = (0..=250).cycle().take(RING_BYTES_MAX).collect();
        ring.push(&pattern, 1);
        assert_eq!(ring.room(), 0);
        ring.ack(1_000_000);
        ring.push(&vec![7; 900_000], 1);
        let pieces = take(&mut ring);
        assert!(pieces.iter().all(|(_, _, bytes)| bytes.len() <= OUTPUT_BYTES_MAX));
        let mut whole = pattern[1_000_000..].to_vec();
        whole.resize(whole.len() + 900_000, 7);
        assert_eq!(pieces.iter().flat_map(|(_, _, bytes)| bytes.clone()).collect::<Vec<_>>(), whole);
        assert!(pieces.is_sorted_by(|a, b| a.0 + a.2.len() as u64 == b.0), "no gap, nothing twice");
    }

    #[test]
    fn a_line_of_single_bytes_does_not_exhaust_the_times() {
        let mut ring = Ring::default();
        for at_ms in 0..70_000 {
            ring.push(b"x", at_ms);
        }
        assert!(ring.room() > 0 && ring.marks.len() <= MARKS_MAX);
        assert_eq!(take(&mut ring).iter().map(|(_, _, bytes)| bytes.len()).sum::<usize>(), 70_000);
        ring.ack(70_000);
        ring.push(b"y", 70_000);
        assert_eq!(take(&mut ring), [(70_000, 70_000, b"y".to_vec())]);
    }
}
