//! The wire format of DNS (RFC 1035), as far as a server needs it that answers one question with
//! addresses or names of its own and passes all else on as it came.

use std::net::IpAddr;

pub(crate) const A: u16 = 1;
pub(crate) const PTR: u16 = 12;
pub(crate) const AAAA: u16 = 28;
const CLASS_IN: u16 = 1;
const HEADER: usize = 12;
/// What a client without EDNS takes in one datagram.
pub(crate) const DATAGRAM: usize = 512;
/// dockerd's: long enough for a program's connections, short enough for an address that changes.
const TTL: u32 = 600;

const RESPONSE: u16 = 0x8000;
const OPCODE: u16 = 0x7800;
const TRUNCATED: u16 = 0x0200;
const RECURSION_DESIRED: u16 = 0x0100;
const RECURSION_AVAILABLE: u16 = 0x0080;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    NoError = 0,
    FormatError = 1,
    ServerFailure = 2,
    NotImplemented = 4,
}

/// The one question of a query.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Question {
    /// Labels in lower case, joined by dots, without the last dot.
    pub(crate) name: String,
    pub(crate) kind: u16,
    /// Where it ends in the query.
    end: usize,
}

/// What goes into an answer's data.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Data {
    Address(IpAddr),
    Name(String),
}

fn number(message: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*message.get(at)?, *message.get(at + 1)?]))
}

/// Reads a query.
///
/// # Errors
/// The code to refuse it with, or `None` for what must not be answered at all: a message without a
/// header, or an answer, which two servers could send each other for ever.
pub(crate) fn question(message: &[u8]) -> Result<Question, Option<Code>> {
    let flags = number(message, 2).filter(|_| message.len() >= HEADER).ok_or(None)?;
    if flags & RESPONSE != 0 {
        return Err(None);
    }
    if flags & OPCODE != 0 {
        return Err(Some(Code::NotImplemented));
    }
    if number(message, 4) != Some(1) {
        return Err(Some(Code::FormatError));
    }
    let (name, at) = name(message).ok_or(Some(Code::FormatError))?;
    let kind = number(message, at).ok_or(Some(Code::FormatError))?;
    match number(message, at + 2) {
        Some(CLASS_IN) => Ok(Question { name, kind, end: at + 4 }),
        Some(_) => Err(Some(Code::NotImplemented)),
        None => Err(Some(Code::FormatError)),
    }
}

/// The name after the header, and where it ends. A first name has nothing to point back to, so that
/// a pointer is an error, and no message makes this loop.
fn name(message: &[u8]) -> Option<(String, usize)> {
    let mut at = HEADER;
    let mut name = String::new();
    loop {
        let length = usize::from(*message.get(at)?);
        at += 1;
        if length == 0 {
            return Some((name, at));
        }
        if length > 63 || at - HEADER + length > 254 {
            return None;
        }
        if !name.is_empty() {
            name.push('.');
        }
        // A dot within a label is no separator: it is written as what no name of ours has.
        name.extend(message.get(at..at + length)?.iter().map(|byte| match byte {
            b'.' => '\0',
            other => char::from(other.to_ascii_lowercase()),
        }));
        at += length;
    }
}

/// The answer with a code and no records, to whatever has a header.
pub(crate) fn refusal(query: &[u8], code: Code) -> Vec<u8> {
    let end = question(query).map_or(HEADER, |question| question.end);
    head(query, end, code)
}

fn head(query: &[u8], end: usize, code: Code) -> Vec<u8> {
    let mut answer = query[..end].to_vec();
    let asked = number(query, 2).unwrap_or(0) & (OPCODE | RECURSION_DESIRED);
    let flags = RESPONSE | RECURSION_AVAILABLE | asked | code as u16;
    answer[2..4].copy_from_slice(&flags.to_be_bytes());
    answer[4..HEADER].fill(0);
    answer[5] = u8::from(end > HEADER);
    answer
}

/// The answer with as many records as fit in `room` bytes, marked as truncated if some do not.
pub(crate) fn answer(query: &[u8], question: &Question, data: &[Data], room: usize) -> Vec<u8> {
    let mut message = head(query, question.end, Code::NoError);
    let mut count: u16 = 0;
    for data in data {
        let record = record(data);
        if message.len() + record.len() > room {
            message[2] |= (TRUNCATED >> 8) as u8;
            break;
        }
        message.extend(record);
        count += 1;
    }
    message[6..8].copy_from_slice(&count.to_be_bytes());
    message
}

fn record(data: &Data) -> Vec<u8> {
    let (kind, bytes) = match data {
        Data::Address(IpAddr::V4(address)) => (A, address.octets().to_vec()),
        Data::Address(IpAddr::V6(address)) => (AAAA, address.octets().to_vec()),
        Data::Name(name) => (PTR, labels(name)),
    };
    // The name of each record is a pointer to the question's.
    let mut record = vec![0xc0, HEADER as u8];
    record.extend(kind.to_be_bytes());
    record.extend(CLASS_IN.to_be_bytes());
    record.extend(TTL.to_be_bytes());
    record.extend((bytes.len() as u16).to_be_bytes());
    record.extend(bytes);
    record
}

/// A name of ours as labels: what is longer than a label may be is cut.
fn labels(name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for label in name.split('.').filter(|label| !label.is_empty()) {
        let label = &label.as_bytes()[..label.len().min(63)];
        if bytes.len() + label.len() + 2 > 255 {
            break;
        }
        bytes.push(label.len() as u8);
        bytes.extend(label);
    }
    bytes.push(0);
    bytes
}

/// Whether a message is the answer to a query: the same number and the same question.
pub(crate) fn answers(answer: &[u8], query: &[u8]) -> bool {
    let Ok(question) = question(query) else { return false };
    answer.len() >= question.end
        && answer[..2] == query[..2]
        && answer[2] & 0x80 != 0
        && answer[HEADER..question.end].eq_ignore_ascii_case(&query[HEADER..question.end])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(name: &str, kind: u16) -> Vec<u8> {
        let mut message = vec![7, 9, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        message.extend(labels(name));
        message.extend(kind.to_be_bytes());
        message.extend(CLASS_IN.to_be_bytes());
        message
    }

    #[test]
    fn a_question_is_read_in_lower_case() {
        let read = question(&query("Web.Back", A)).unwrap();
        assert_eq!((read.name.as_str(), read.kind), ("web.back", A));
    }

    #[test]
    fn each_cut_and_each_changed_byte_of_a_query_is_answered_or_refused() {
        let whole = query("web.back", A);
        for end in 0..whole.len() {
            assert!(question(&whole[..end]).is_err());
        }
        for at in 0..whole.len() {
            for byte in 0..=255 {
                let mut changed = whole.clone();
                changed[at] = byte;
                match question(&changed) {
                    Ok(read) => drop(answer(&changed, &read, &[], DATAGRAM)),
                    Err(Some(code)) => drop(refusal(&changed, code)),
                    Err(None) => {}
                }
            }
        }
    }

    #[test]
    fn a_pointer_and_an_answer_are_no_questions() {
        let mut pointer = query("", A);
        pointer.splice(12..13, [0xc0, 12]);
        assert_eq!(question(&pointer), Err(Some(Code::FormatError)));
        let mut response = query("web", A);
        response[2] |= 0x80;
        assert_eq!(question(&response), Err(None));
    }

    #[test]
    fn what_does_not_fit_in_a_datagram_is_marked() {
        let query = query("web", A);
        let read = question(&query).unwrap();
        let data: Vec<Data> = (0..100).map(|last| Data::Address([10, 0, 0, last].into())).collect();
        let short = answer(&query, &read, &data, DATAGRAM);
        assert!(short.len() <= DATAGRAM && short[2] & 2 != 0 && short[7] == 30);
        let long = answer(&query, &read, &data, 65535);
        assert!(long[2] & 2 == 0 && long[7] == 100);
    }

    #[test]
    fn an_answer_has_the_number_and_the_question_of_its_query() {
        let (web, other) = (query("web", A), query("wob", A));
        let read = question(&web).unwrap();
        assert!(answers(&answer(&web, &read, &[], DATAGRAM), &web));
        assert!(!answers(&answer(&web, &read, &[], DATAGRAM), &other));
        assert!(!answers(&web, &web));
        assert!(!answers(&[], &web));
    }
}
