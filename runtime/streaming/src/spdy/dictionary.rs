//! The zlib dictionary that both sides of a SPDY/3.1 connection begin to compress headers with
//! (draft-mbelshe-httpbis-spdy-00, section 2.6.10.1).

/// Words that stand in the dictionary behind their length, as in a block of headers.
const NAMES: &str = "\
    options head post put delete trace accept accept-charset accept-encoding accept-language \
    accept-ranges age allow authorization cache-control connection content-base content-encoding \
    content-language content-length content-location content-md5 content-range content-type date \
    etag expect expires from host if-match if-modified-since if-none-match if-range \
    if-unmodified-since last-modified location max-forwards pragma proxy-authenticate \
    proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade \
    user-agent vary via warning www-authenticate method get status";

/// More of them; the first has a space in it.
const MORE: [&str; 8] =
    ["200 OK", "version", "HTTP/1.1", "url", "public", "set-cookie", "keep-alive", "origin"];

/// The rest, without lengths.
const VALUES: &str = "\
    100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505\
    203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request\
    401 Unauthorized403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented\
    503 Service Unavailable\
    Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 \
    Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT\
    chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,\
    text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8\
    charset=iso-8859-1,utf-,*,enq=0.";

/// Its length in the draft.
const LENGTH: usize = 1423;

pub(super) fn dictionary() -> Vec<u8> {
    let mut dictionary = Vec::with_capacity(LENGTH);
    for word in NAMES.split_whitespace().chain(MORE) {
        dictionary.extend((word.len() as u32).to_be_bytes());
        dictionary.extend(word.bytes());
    }
    dictionary.extend(VALUES.bytes());
    dictionary
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dictionary_is_that_of_the_draft() {
        let dictionary = dictionary();
        // Adler-32, by which a compressed stream names its dictionary (RFC 1950).
        let (a, b) = dictionary.iter().fold((1_u32, 0_u32), |(a, b), byte| {
            let a = (a + u32::from(*byte)) % 65521;
            (a, (b + a) % 65521)
        });
        assert_eq!((dictionary.len(), b << 16 | a), (LENGTH, 0xe3c6_a7c2));
    }
}
