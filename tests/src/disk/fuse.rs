//! The wire of FUSE (linux/fuse.h) as far as a file system needs it that is a single regular file:
//! what the kernel asks for, and the replies. Numbers are in the machine's own byte order.

/// FUSE_MAX_PAGES allows for writes of this many bytes.
pub(super) const MAX_WRITE: usize = 1 << 20;
/// Room for the largest request: a write and what comes before its data.
pub(super) const MAX_REQUEST: usize = MAX_WRITE + 4096;

const HEADER: usize = 40;
/// Of `fuse_write_in`, between the header and the data.
const WRITE_HEADER: usize = 40;

/// What the kernel wants.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Operation<'a> {
    Init,
    GetAttributes,
    Open,
    Read {
        at: u64,
        size: usize,
    },
    Write {
        at: u64,
        data: &'a [u8],
    },
    /// fsync(2): everything that was written before is to survive a power loss.
    Sync,
    /// A reply without content is all that it takes.
    Close,
    /// The kernel expects no reply.
    Notice,
    /// Such as extended attributes, or fallocate(2) for discards, which loop(4) does without.
    Unsupported,
}

/// One request, with the number that its reply has to bear.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Request<'a> {
    pub unique: u64,
    pub operation: Operation<'a>,
}

impl<'a> Request<'a> {
    /// `None` for bytes that are no request.
    pub(super) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let unique = number(bytes, 8, 8)?;
        let operation = match number(bytes, 4, 4)? {
            26 => Operation::Init,
            3 => Operation::GetAttributes,
            14 => Operation::Open,
            15 => Operation::Read {
                at: number(bytes, HEADER + 8, 8)?,
                size: number(bytes, HEADER + 16, 4)? as usize,
            },
            16 => {
                let size = number(bytes, HEADER + 16, 4)? as usize;
                let data = bytes.get(HEADER + WRITE_HEADER..)?.get(..size)?;
                Operation::Write { at: number(bytes, HEADER + 8, 8)?, data }
            }
            20 => Operation::Sync,
            // FUSE_RELEASE, FUSE_FLUSH and FUSE_DESTROY.
            18 | 25 | 38 => Operation::Close,
            // FUSE_FORGET, FUSE_INTERRUPT and FUSE_BATCH_FORGET.
            2 | 36 | 42 => Operation::Notice,
            _ => Operation::Unsupported,
        };
        Some(Self { unique, operation })
    }
}

fn number(bytes: &[u8], at: usize, size: usize) -> Option<u64> {
    let field = bytes.get(at..at + size)?;
    Some(match size {
        4 => u32::from_ne_bytes(field.try_into().ok()?).into(),
        _ => u64::from_ne_bytes(field.try_into().ok()?),
    })
}

/// A reply with this content.
pub(super) fn reply(unique: u64, content: &[u8]) -> Vec<u8> {
    message(unique, 0, content)
}

/// A reply that says that the operation failed.
pub(super) fn refuse(unique: u64, error: nix::errno::Errno) -> Vec<u8> {
    message(unique, -(error as i32), &[])
}

fn message(unique: u64, error: i32, content: &[u8]) -> Vec<u8> {
    let length = (16 + content.len()) as u32;
    [&length.to_ne_bytes()[..], &error.to_ne_bytes(), &unique.to_ne_bytes(), content].concat()
}

/// The content of the reply to FUSE_INIT (`fuse_init_out`).
pub(super) fn init() -> Vec<u8> {
    // FUSE_BIG_WRITES and FUSE_MAX_PAGES. Not FUSE_WRITEBACK_CACHE: the kernel would keep writes to
    // itself that the disk has already taken.
    const FLAGS: u32 = 1 << 5 | 1 << 22;
    let pages = (MAX_WRITE / 4096) as u16;
    let mut content = Vec::new();
    // Version 7.31, and how much is read ahead.
    content.extend([7, 31, 128 << 10, FLAGS].iter().flat_map(|field: &u32| field.to_ne_bytes()));
    // How many requests may wait, and from how many on the kernel calls that a congestion.
    content.extend([16, 12].iter().flat_map(|field: &u16| field.to_ne_bytes()));
    content.extend((MAX_WRITE as u32).to_ne_bytes());
    // Times are in nanoseconds.
    content.extend(1_u32.to_ne_bytes());
    content.extend(pages.to_ne_bytes());
    content.resize(64, 0);
    content
}

/// The content of the reply to FUSE_GETATTR (`fuse_attr_out`): a regular file of `size` bytes.
pub(super) fn attributes(size: u64) -> Vec<u8> {
    const VALID: u64 = 3600;
    let mut content = Vec::new();
    content.extend([VALID, 0, 1, size, size / 512].iter().flat_map(|field| field.to_ne_bytes()));
    // The times, which nobody reads.
    content.resize(content.len() + 36, 0);
    // Mode, number of links, owner, group, device, size of a block.
    content.extend(
        [0o100_600, 1, 0, 0, 0, 4096, 0].iter().flat_map(|field: &u32| field.to_ne_bytes()),
    );
    content
}

/// The content of the reply to FUSE_WRITE (`fuse_write_out`).
pub(super) fn written(size: usize) -> Vec<u8> {
    [(size as u32).to_ne_bytes(), [0; 4]].concat()
}

/// The content of the reply to FUSE_OPEN (`fuse_open_out`): no handle and no flags.
pub(super) fn opened() -> Vec<u8> {
    vec![0; 16]
}
