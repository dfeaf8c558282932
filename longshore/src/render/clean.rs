//! A step's output on a terminal: colours pass, everything else that a terminal would obey does not.

/// One line as a terminal may be given it. Colours (SGR) stay if `colour`, and end with the line; other escape
/// sequences are dropped; what is left of control characters is made visible. Of a line that draws over itself
/// with carriage returns (a progress bar) the last state is shown.
pub(crate) fn clean(line: &[u8], colour: bool) -> String {
    let text = String::from_utf8_lossy(line);
    let last_state = text.trim_end_matches('\r').rsplit('\r').next().unwrap_or_default();
    let mut shown = String::with_capacity(last_state.len());
    let mut painted = false;
    let mut rest = last_state;
    while let Some(c) = rest.chars().next() {
        let (taken, sequence) = if c == '\x1b' || c == '\u{9b}' { escape(rest) } else { (c.len_utf8(), None) };
        match sequence {
            Some(Sequence::Colour) if colour => {
                shown.push_str(&rest[..taken]);
                painted = true;
            }
            Some(_) => {}
            None => shown.push(visible(c)),
        }
        rest = &rest[taken..];
    }
    if painted {
        shown.push_str("\x1b[0m");
    }
    shown
}

/// An escape sequence, whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sequence {
    /// `ESC [ … m` with nothing but numbers.
    Colour,
    Other,
}

/// How many bytes the escape at the start takes, and what it is; `None` if it is none that has an end.
fn escape(text: &str) -> (usize, Option<Sequence>) {
    let introducer = text.chars().next().map_or(0, char::len_utf8);
    let alone = (introducer, None);
    if !text.starts_with('\x1b') {
        return alone;
    }
    let body = &text[1..];
    match body.bytes().next() {
        // Control sequence: parameters, then one final byte.
        Some(b'[') => match body[1..].bytes().position(|byte| (0x40..=0x7e).contains(&byte)) {
            Some(length) if body[1..=length].bytes().all(|byte| (0x20..0x40).contains(&byte)) => {
                let parameters = &body[1..=length];
                let numbers = parameters.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b';' | b':'));
                let is_colour = body.as_bytes()[1 + length] == b'm' && numbers;
                (1 + 1 + length + 1, Some(if is_colour { Sequence::Colour } else { Sequence::Other }))
            }
            _ => alone,
        },
        // Strings (titles, links, device control): to BEL or ESC \, which is dropped with them.
        Some(b']' | b'P' | b'X' | b'^' | b'_') => {
            let bell = body.find('\x07').map(|at| at + 1);
            let terminator = body.find("\x1b\\").map(|at| at + 2);
            match bell.into_iter().chain(terminator).min() {
                Some(end) => (1 + end, Some(Sequence::Other)),
                // Without an end the terminal would swallow all that follows: nothing of it is shown.
                None => (text.len(), Some(Sequence::Other)),
            }
        }
        // Intermediates, then one final byte: character sets and the like.
        Some(0x20..=0x2f) => match body.bytes().position(|byte| (0x30..=0x7e).contains(&byte)) {
            Some(length) => (1 + length + 1, Some(Sequence::Other)),
            None => alone,
        },
        Some(0x30..=0x7e) => (2, Some(Sequence::Other)),
        _ => alone,
    }
}

fn visible(c: char) -> char {
    match c {
        '\t' => c,
        // The pictures of control characters stand in their order.
        '\0'..='\x1f' => char::from_u32(0x2400 + u32::from(c)).unwrap_or('\u{fffd}'),
        '\x7f' => '\u{2421}',
        // C1 controls, and what turns the direction of writing: text would look like other text.
        '\u{80}'..='\u{9f}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => '\u{fffd}',
        _ => c,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_pass_and_end_with_the_line() {
        assert_eq!(clean(b"\x1b[1;31mred\x1b[0m plain", true), "\x1b[1;31mred\x1b[0m plain\x1b[0m");
        assert_eq!(clean(b"\x1b[38:2:1:2:3mx", true), "\x1b[38:2:1:2:3mx\x1b[0m");
        assert_eq!(clean(b"\x1b[1;31mred", false), "red");
    }

    #[test]
    fn nothing_else_moves_the_terminal() {
        let cases: [(&[u8], &str); 13] = [
            (b"a\x1b[2Jb\x1b[10;10Hc", "abc"),
            (b"\x1b[?25lhidden", "hidden"),
            (b"\x1b[>4;2mx", "x"),
            (b"\x1b]0;title\x07text", "text"),
            (b"\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
            (b"before\x1b]0;never ends", "before"),
            (b"\x1bcreset", "reset"),
            (b"\x1b(0lines", "lines"),
            (b"bell\x07 \x00", "bell\u{2407} \u{2400}"),
            (b"lonely \x1b", "lonely \u{241b}"),
            (b"half \x1b[31", "half \u{241b}[31"),
            ("c1 \u{9b}31m \u{202e}".as_bytes(), "c1 \u{fffd}31m \u{fffd}"),
            (b"\xff\xfe", "\u{fffd}\u{fffd}"),
        ];
        for (line, shown) in cases {
            assert_eq!(clean(line, true), shown, "{line:?}");
        }
    }

    #[test]
    fn a_progress_bar_shows_its_last_state() {
        assert_eq!(clean(b" 10%\r 50%\r100%\r", true), "100%");
        assert_eq!(clean(b"dos line\r", true), "dos line");
        assert_eq!(clean(b"a\tb", true), "a\tb");
    }

    #[test]
    fn whatever_the_bytes_no_control_but_tab_and_colour_is_left() {
        // Every pair of bytes behind an escape: a terminal sees at most the colour's own.
        for first in 0..=255_u8 {
            for second in 0..=255_u8 {
                let shown = clean(&[0x1b, first, second, b'x'], false);
                assert!(!shown.chars().any(|c| c.is_control() && c != '\t'), "{first} {second}: {shown:?}");
            }
        }
    }
}
