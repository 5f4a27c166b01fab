//! Server-sent events: finding where events end, and reading one.
//!
//! A stream goes through as the bytes it came as. All the relay has to know is where an event ends, because only there may
//! something else follow: the end, or an error. [`EventSplitter`] finds that wherever the network cut the stream.

use std::borrow::Cow;

use bytes::{Bytes, BytesMut};
use memchr::{memchr2, memchr2_iter};

/// Passes on whole events and holds back the beginning of the next.
#[derive(Debug)]
pub struct EventSplitter {
    held: BytesMut,
    max_event_bytes: usize,
    /// No byte since the last line's end.
    line_is_empty: bool,
    /// The last line ended in a CR, whose LF may still come.
    after_cr: bool,
}

/// An event is longer than was allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventTooLong;

impl EventSplitter {
    /// For events up to that size.
    pub fn new(max_event_bytes: usize) -> Self {
        Self {
            held: BytesMut::new(),
            max_event_bytes,
            line_is_empty: true,
            after_cr: false,
        }
    }

    /// Takes the next piece of the stream; returns the whole events there are now, one after the other.
    pub fn push(&mut self, mut piece: Bytes) -> Result<Option<Bytes>, EventTooLong> {
        let Some(end) = self.last_event_end(&piece) else {
            if self.held.len() + piece.len() > self.max_event_bytes {
                return Err(EventTooLong);
            }
            self.held.extend_from_slice(&piece);
            return Ok(None);
        };
        let rest = piece.split_off(end);
        let whole = if self.held.is_empty() {
            piece
        } else {
            self.held.extend_from_slice(&piece);
            std::mem::take(&mut self.held).freeze()
        };
        if rest.len() > self.max_event_bytes {
            return Err(EventTooLong);
        }
        self.held.extend_from_slice(&rest);
        Ok(Some(whole))
    }

    /// Whether the stream could end here.
    pub fn is_between_events(&self) -> bool {
        // an LF that completes the CR LF of an event's end is no event
        self.held.iter().all(|byte| *byte == b'\n')
    }

    /// Where the last event ends whose empty line is in this piece.
    fn last_event_end(&mut self, piece: &[u8]) -> Option<usize> {
        let mut end = None;
        let mut line_start = 0;
        for at in memchr2_iter(b'\n', b'\r', piece) {
            let is_lf = piece.get(at) == Some(&b'\n');
            let touches = at == line_start;
            line_start = at + 1;
            if is_lf && touches && self.after_cr {
                // the second half of a line's end
                self.after_cr = false;
                if end == Some(at) {
                    end = Some(line_start);
                }
                continue;
            }
            if touches && self.line_is_empty {
                end = Some(line_start);
            }
            self.line_is_empty = true;
            self.after_cr = !is_lf;
        }
        if line_start < piece.len() {
            self.line_is_empty = false;
            self.after_cr = false;
        }
        end
    }
}

/// The data of each event in a run of whole events; events without data are left out.
pub fn events(run: &[u8]) -> impl Iterator<Item = Cow<'_, [u8]>> {
    let mut rest = run;
    std::iter::from_fn(move || {
        let mut data: Option<Cow<'_, [u8]>> = None;
        while !rest.is_empty() {
            let (line, after) = split_line(rest);
            rest = after;
            if line.is_empty() {
                if data.is_some() {
                    return data;
                }
            } else if let Some(value) = data_of(line) {
                data = Some(match data {
                    None => Cow::Borrowed(value),
                    Some(before) => {
                        let mut joined = before.into_owned();
                        joined.push(b'\n');
                        joined.extend_from_slice(value);
                        Cow::Owned(joined)
                    }
                });
            }
        }
        None
    })
}

/// The first line without its end, and what follows the end.
fn split_line(text: &[u8]) -> (&[u8], &[u8]) {
    let Some(at) = memchr2(b'\n', b'\r', text) else {
        return (text, &[]);
    };
    let (line, rest) = text.split_at(at);
    let rest = rest
        .strip_prefix(b"\r\n")
        .or_else(|| rest.get(1..))
        .unwrap_or_default();
    (line, rest)
}

/// The value of a `data` line.
fn data_of(line: &[u8]) -> Option<&[u8]> {
    let value = line.strip_prefix(b"data")?;
    if value.is_empty() {
        return Some(value);
    }
    let value = value.strip_prefix(b":")?;
    Some(value.strip_prefix(b" ").unwrap_or(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMIT: usize = 1000;

    fn data(run: &[u8]) -> Vec<Vec<u8>> {
        events(run).map(Cow::into_owned).collect()
    }

    /// What comes out when the stream comes in these pieces: the runs, and what is held at the end.
    fn split(stream: &[u8], cuts: &[usize]) -> (Vec<Bytes>, Vec<u8>, bool) {
        let mut splitter = EventSplitter::new(LIMIT);
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (stream.len() + 1)).collect();
        cuts.extend([0, stream.len()]);
        cuts.sort_unstable();
        let runs = cuts
            .windows(2)
            .filter_map(|pair| {
                let piece = Bytes::copy_from_slice(&stream[pair[0]..pair[1]]);
                splitter.push(piece).unwrap()
            })
            .collect();
        let between = splitter.is_between_events();
        (runs, splitter.held.to_vec(), between)
    }

    #[test]
    fn events_are_read_as_the_standard_says() {
        for (run, expected) in [
            (&b"data: a\n\n"[..], &[&b"a"[..]][..]),
            (b"data:a\r\n\r\ndata: b\r\rdata:  c\n\n", &[b"a", b"b", b" c"]),
            (b"data: a\ndata: b\n\n", &[b"a\nb"]),
            (
                b": comment\nevent: x\nid: 1\ndata: a\nretry: 5\n\n: only a comment\n\n",
                &[b"a"],
            ),
            (b"data\n\ndatabase: x\n\n data: y\n\n", &[b""]),
            (b"\n\n\n", &[]),
            (b"data: unfinished\n", &[]),
        ] {
            assert_eq!(data(run), expected, "{:?}", String::from_utf8_lossy(run));
        }
    }

    #[test]
    fn half_an_event_is_held_back() {
        let (runs, held, between) = split(b"data: a\n\ndata: b\n", &[]);
        assert_eq!(runs, [&b"data: a\n\n"[..]]);
        assert_eq!(held, b"data: b\n");
        assert!(!between);
    }

    #[test]
    fn the_line_feed_of_an_event_s_last_line_end_may_come_later() {
        let (runs, held, between) = split(b"data: a\r\n\r\n", &[10]);
        assert_eq!(runs, [&b"data: a\r\n\r"[..]]);
        assert_eq!(held, b"\n");
        assert!(between);
    }

    #[test]
    fn an_endless_event_is_refused() {
        let mut splitter = EventSplitter::new(10);
        assert_eq!(splitter.push(Bytes::from_static(b"data: a")), Ok(None));
        assert_eq!(splitter.push(Bytes::from_static(b"data")), Err(EventTooLong));
        let mut splitter = EventSplitter::new(10);
        assert_eq!(
            splitter.push(Bytes::from_static(b"\n\ndata: abcdefg")),
            Err(EventTooLong)
        );
    }

    fn any_stream() -> impl Strategy<Value = Vec<u8>> {
        let line = prop_oneof![
            Just(String::new()),
            "data: [a-z]{0,3}",
            "data:[a-z ]{0,3}",
            "(data|id|:)[: a-z]{0,3}",
        ];
        let end = prop_oneof![Just("\n"), Just("\r\n"), Just("\r")];
        prop::collection::vec((line, end), 0..12).prop_map(|lines| {
            lines
                .into_iter()
                .map(|(line, end)| line + end)
                .collect::<String>()
                .into_bytes()
        })
    }

    proptest! {
        #[test]
        fn pieces_change_nothing(stream in any_stream(), cuts in prop::collection::vec(any::<usize>(), 0..20)) {
            let (runs, held, _) = split(&stream, &cuts);
            let mut all = runs.concat();
            all.extend_from_slice(&held);
            prop_assert_eq!(&all, &stream, "every byte comes once and in order");

            let apart: Vec<Vec<u8>> = runs.iter().flat_map(|run| data(run)).collect();
            prop_assert_eq!(apart, data(&stream), "no event is torn");

            let (_, held_whole, between) = split(&stream, &[]);
            let trimmed = |held: &[u8]| held.iter().copied().skip_while(|byte| *byte == b'\n').collect::<Vec<_>>();
            prop_assert_eq!(trimmed(&held), trimmed(&held_whole));
            prop_assert!(!between || data(&[&held_whole[..], b"\n\n"].concat()).is_empty());
        }

        #[test]
        fn any_bytes_pass_unchanged(stream in prop::collection::vec(prop_oneof![Just(b'\n'), Just(b'\r'), any::<u8>()], 0..60),
                                    cuts in prop::collection::vec(any::<usize>(), 0..9)) {
            let (runs, held, _) = split(&stream, &cuts);
            let mut all = runs.concat();
            all.extend_from_slice(&held);
            prop_assert_eq!(all, stream);
        }
    }
}
