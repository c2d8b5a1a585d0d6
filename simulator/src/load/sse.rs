//! Server-sent events, as far as they are needed: `id` and `data` of each, in bounded memory.

/// Above any event of Cellbus.
const LINE_BYTES_MAX: usize = 4 << 20;

/// One event.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Event {
    /// Its id, where it has one.
    pub(super) id: Option<String>,
    /// Its data; several lines are joined by line feeds.
    pub(super) data: String,
}

/// A line is longer than any event: this is no stream of Cellbus's.
#[derive(Debug)]
pub(super) struct TooLong;

/// Puts events together from the pieces in which they arrive.
#[derive(Default)]
pub(super) struct Parser {
    rest: Vec<u8>,
    event: Event,
}

impl Parser {
    /// The events that this piece completes.
    pub(super) fn feed(&mut self, piece: &[u8]) -> Result<Vec<Event>, TooLong> {
        let mut events = Vec::new();
        let mut from = 0;
        while let Some(length) = piece[from..].iter().position(|byte| *byte == b'\n') {
            let end = &piece[from..from + length];
            from += length + 1;
            if self.rest.is_empty() {
                Self::line(&mut self.event, end, &mut events);
            } else {
                self.rest.extend_from_slice(end);
                Self::line(&mut self.event, &self.rest, &mut events);
                self.rest.clear();
            }
        }
        self.rest.extend_from_slice(&piece[from..]);
        if self.rest.len() > LINE_BYTES_MAX || self.event.data.len() > LINE_BYTES_MAX {
            Err(TooLong)
        } else {
            Ok(events)
        }
    }

    fn line(event: &mut Event, line: &[u8], events: &mut Vec<Event>) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            let ended = std::mem::take(event);
            // Without data it is a comment that keeps the connection open, or only an id.
            if !ended.data.is_empty() {
                events.push(ended);
            }
            return;
        }
        let (field, value) = match line.iter().position(|byte| *byte == b':') {
            Some(colon) => (&line[..colon], line[colon + 1..].strip_prefix(b" ").unwrap_or(&line[colon + 1..])),
            None => (line, &b""[..]),
        };
        match field {
            b"data" => {
                if !event.data.is_empty() {
                    event.data.push('\n');
                }
                event.data.push_str(&String::from_utf8_lossy(value));
            }
            b"id" => event.id = Some(String::from_utf8_lossy(value).into_owned()),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_put_together_however_they_are_cut() {
        let stream =
            b": hello\n\nid: 1\nevent: x\ndata: {\"a\":\ndata: 1}\n\nretry: 5\nid:2\r\ndata:two\r\n\r\nid: 3\n\n";
        let expected = [
            Event { id: Some("1".to_owned()), data: "{\"a\":\n1}".to_owned() },
            Event { id: Some("2".to_owned()), data: "two".to_owned() },
        ];
        for size in 1..=stream.len() {
            let mut parser = Parser::default();
            let events: Vec<_> = stream.chunks(size).flat_map(|piece| parser.feed(piece).unwrap()).collect();
            assert_eq!(events, expected, "in pieces of {size}");
        }
    }

    #[test]
    fn a_line_without_end_is_given_up() {
        let mut parser = Parser::default();
        let piece = vec![b'x'; 1 << 20];
        assert!((0..6).any(|_| parser.feed(&piece).is_err()));
    }
}
