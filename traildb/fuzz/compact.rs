//! A small form of a database, made for mutation.
//!
//! ```text
//!   flags | info | fields | uuids | toc | data | codes | patches | lexicon 1 | lexicon 2 ...
//!           each: length in 16 bits, bytes; what is missing is empty
//!   codes    19 bytes each: word in 16 bits, length in 8, symbol in 128
//!   patches  5 bytes each: where in the package in 32 bits, what in 8
//! ```
//!
//! The codebook of a real file has 1.3 MB, of which a mutation would hit nothing but copies.

/// The file is of version 0.
pub const VERSION_0: u8 = 1;
/// The members are packed into one file.
pub const PACKAGE: u8 = 2;
/// The storage says that it is remote, so that plans are made.
pub const REMOTE: u8 = 4;

const ENTRIES: usize = 1 << 16;

/// A database, member by member.
#[derive(Default)]
pub struct Compact {
    pub flags: u8,
    pub info: Vec<u8>,
    pub fields: Vec<u8>,
    pub uuids: Vec<u8>,
    pub toc: Vec<u8>,
    pub data: Vec<u8>,
    pub codes: Vec<u8>,
    pub patches: Vec<u8>,
    pub lexicons: Vec<Vec<u8>>,
}

#[allow(dead_code, reason = "of the targets that share this, one asks for it")]
impl Compact {
    /// Takes any bytes for a database.
    pub fn parse(bytes: &[u8]) -> Compact {
        let (flags, mut rest) = bytes.split_first().map_or((0, bytes), |(f, rest)| (*f, rest));
        let mut next = || {
            let Some((len, tail)) = rest.split_first_chunk::<2>() else { return Vec::new() };
            let (part, tail) = tail.split_at(tail.len().min(u16::from_le_bytes(*len).into()));
            rest = tail;
            part.to_vec()
        };
        let mut compact = Compact {
            flags,
            info: next(),
            fields: next(),
            uuids: next(),
            toc: next(),
            data: next(),
            codes: next(),
            patches: next(),
            lexicons: Vec::new(),
        };
        for _ in 0..64 {
            compact.lexicons.push(next());
        }
        compact
    }

    /// The bytes that parse to this, or `None` if a member is too long for a seed.
    pub fn bytes(&self) -> Option<Vec<u8>> {
        let Compact { info, fields, uuids, toc, data, codes, patches, lexicons, .. } = self;
        let fixed = [info, fields, uuids, toc, data, codes, patches];
        let mut bytes = vec![self.flags];
        for part in fixed.into_iter().chain(lexicons) {
            bytes.extend(u16::try_from(part.len()).ok()?.to_le_bytes());
            bytes.extend(part);
        }
        Some(bytes)
    }

    /// Takes the code words out of a codebook of version 1.
    pub fn take_codes(&mut self, codebook: &[u8]) {
        for (at, entry) in codebook.chunks_exact(20).enumerate() {
            let bits = u32::from_le_bytes([entry[16], entry[17], entry[18], entry[19]]);
            if (1..=16).contains(&bits) && at < 1 << bits {
                self.codes.extend((at as u16).to_le_bytes());
                self.codes.push(bits as u8);
                self.codes.extend(&entry[..16]);
            }
        }
    }

    /// The members by name, as they are in a directory.
    pub fn members(&self) -> Vec<(String, Vec<u8>)> {
        let old = self.flags & VERSION_0 != 0;
        let mut members = Vec::new();
        let mut add = |name: &str, bytes: &[u8]| members.push((name.to_owned(), bytes.to_vec()));
        if !old {
            add("version", b"1");
        }
        add("info", &self.info);
        let names = self.fields.split(|&b| b == b'\n').filter(|name| !name.is_empty());
        for (name, lexicon) in names.zip(&self.lexicons) {
            add(&format!("lexicon.{}", String::from_utf8_lossy(name)), lexicon);
        }
        add("fields", &self.fields);
        add("trails.codebook", &self.codebook(old));
        add("trails.toc", &self.toc);
        add("trails.data", &self.data);
        add(if old { "cookies" } else { "uuids" }, &self.uuids);
        members
    }

    fn codebook(&self, old: bool) -> Vec<u8> {
        let entry_bytes = if old { 12 } else { 20 };
        let mut book = vec![0; ENTRIES * entry_bytes];
        for code in self.codes.chunks_exact(19) {
            let word = usize::from(u16::from_le_bytes([code[0], code[1]]));
            // A length that no code word has goes into one entry, to be refused.
            let step = 1 << u32::from(code[2]).min(16);
            for at in (word..ENTRIES).step_by(step) {
                let entry = &mut book[at * entry_bytes..(at + 1) * entry_bytes];
                if old {
                    entry[..4].copy_from_slice(&code[3..7]);
                    entry[4..8].copy_from_slice(&code[11..15]);
                } else {
                    entry[..16].copy_from_slice(&code[3..19]);
                }
                entry[entry_bytes - 4] = code[2];
            }
        }
        book
    }

    /// The package, patches applied: head, index and every byte behind them can be wrong.
    pub fn package(&self) -> Vec<u8> {
        let members = self.members();
        let room: usize = members.iter().map(|(name, _)| name.len() + 43).sum();
        let mut file = vec![0; 2560 + (22 + 51 + room + 1).next_multiple_of(512)];
        let mut index = String::from("TAR TOC FOR TDB VER 1\n");
        for (name, bytes) in &members {
            index.push_str(&format!("{name} {} {}\n", file.len(), bytes.len()));
            file.extend(bytes);
            file.resize(file.len().next_multiple_of(512), 0);
        }
        index.push('\n');
        file[2560..2560 + index.len()].copy_from_slice(index.as_bytes());
        for patch in self.patches.chunks_exact(5) {
            let at = u32::from_le_bytes([patch[0], patch[1], patch[2], patch[3]]) as usize;
            if let Some(byte) = file.get_mut(at) {
                *byte = patch[4];
            }
        }
        file
    }
}
