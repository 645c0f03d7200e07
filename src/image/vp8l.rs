//! Scans the compressed data of lossless WebP
//! (<https://developers.google.com/speed/webp/docs/webp_lossless_bitstream_specification>) to find
//! the size of the decoder's prefix code tables. The data may declare 65,536 groups of codes for a
//! picture of any size, and a code of a few bytes may need a table of tens of kilobytes.

/// Returns the size in bytes of the decoder's tables, or `None` if the data is damaged, which the
/// decoder reports too. `size` is that of the picture if the data does not contain it, as in alpha
/// planes. Reads up to the codes of the picture's own pixels, and stops when tables exceed `most`.
pub(super) fn table_bytes(data: &[u8], size: Option<(u32, u32)>, most: u64) -> Option<u64> {
    let mut bits = Bits { data, at: 0 };
    let (mut width, height) = match size {
        Some(size) => size,
        None => {
            (bits.read(8)? == 0x2f).then_some(())?;
            let size = (bits.read(14)? + 1, bits.read(14)? + 1);
            bits.read(1 + 3)?; // the alpha flag and the version
            size
        }
    };
    let mut transforms = [false; 4];
    while bits.read(1)? == 1 {
        let transform = bits.read(2)?;
        // Each may occur once.
        (!std::mem::replace(&mut transforms[transform as usize], true)).then_some(())?;
        match transform {
            0 | 1 => {
                let block = bits.read(3)? + 2;
                largest_number(&mut bits, blocks(width, block), blocks(height, block))?;
            }
            2 => {}
            _ => {
                let colors = bits.read(8)? + 1;
                largest_number(&mut bits, colors, 1)?;
                let together = match colors {
                    ..=2 => 3,
                    3..=4 => 2,
                    5..=16 => 1,
                    _ => 0,
                };
                width = blocks(width, together);
            }
        }
    }
    let colors = color_cache(&mut bits)?;
    let mut groups = 1;
    if bits.read(1)? == 1 {
        let block = bits.read(3)? + 2;
        groups = u64::from(largest_number(
            &mut bits,
            blocks(width, block),
            blocks(height, block),
        )?) + 1;
    }
    let mut bytes = 0;
    for _ in 0..groups {
        bytes += Group::read(&mut bits, colors)?.bytes;
        if bytes > most {
            break;
        }
    }
    Some(bytes)
}

/// The number of blocks of `1 << bits` pixels in a side.
fn blocks(side: u32, bits: u32) -> u32 {
    side.div_ceil(1 << bits)
}

/// Reads an image inside the data, such as that of the group numbers. Returns the largest of those
/// numbers, which red and green form. Copies of pixels, and cached colors, add no number that did
/// not occur before.
fn largest_number(bits: &mut Bits, width: u32, height: u32) -> Option<u32> {
    let colors = color_cache(bits)?;
    let codes = Group::read(bits, colors)?.codes;
    let (pixels, mut done, mut largest) = (u64::from(width) * u64::from(height), 0, 0);
    while done < pixels {
        match codes[0].symbol(bits)? {
            green @ 0..256 => {
                let red = codes[1].symbol(bits)?;
                codes[2].symbol(bits)?;
                codes[3].symbol(bits)?;
                largest = largest.max(red << 8 | green);
                done += 1;
            }
            symbol @ 256..280 => {
                done += number(bits, symbol - 256)?;
                let distance = codes[4].symbol(bits)?;
                number(bits, distance)?;
            }
            _ => done += 1,
        }
    }
    Some(largest)
}

/// Reads a length or distance, whose symbol says how many bits follow.
fn number(bits: &mut Bits, symbol: u32) -> Option<u64> {
    if symbol < 4 {
        return Some(u64::from(symbol) + 1);
    }
    let more = (symbol - 2) >> 1;
    Some(u64::from(((2 + (symbol & 1)) << more) + bits.read(more)?) + 1)
}

/// Reads the number of cached colors, which have symbols of their own.
fn color_cache(bits: &mut Bits) -> Option<usize> {
    match bits.read(1)? {
        0 => Some(0),
        _ => bits
            .read(4)
            .filter(|bits| (1..=11).contains(bits))
            .map(|bits| 1 << bits),
    }
}

/// Reads bits from bytes, lowest first.
struct Bits<'a> {
    data: &'a [u8],
    at: usize,
}

impl Bits<'_> {
    fn read(&mut self, count: u32) -> Option<u32> {
        (0..count).try_fold(0, |number, bit| {
            let next = self.data.get(self.at / 8)? >> (self.at % 8) & 1;
            self.at += 1;
            Some(number | u32::from(next) << bit)
        })
    }
}

/// The codes for green (with lengths and cached colors), red, blue, alpha, and distances.
struct Group {
    codes: [Code; 5],
    bytes: u64,
}

impl Group {
    /// The size of a group in addition to its tables, in a growing list.
    const BYTES: u64 = 1024;

    fn read(bits: &mut Bits, colors: usize) -> Option<Group> {
        let mut bytes = Group::BYTES;
        let mut read = |symbols| {
            let code = Code::read(bits, symbols)?;
            bytes += code.bytes();
            Some(code)
        };
        let codes = [
            read(280 + colors)?,
            read(256)?,
            read(256)?,
            read(256)?,
            read(40)?,
        ];
        Some(Group { codes, bytes })
    }
}

/// The maximum length of a code, in bits.
const LONGEST: usize = 15;

/// A prefix code: symbols in the order of their codes, and the number of codes of each length.
struct Code {
    symbols: Vec<u16>,
    counts: [u16; LONGEST + 1],
}

impl Code {
    fn read(bits: &mut Bits, symbols: usize) -> Option<Code> {
        if bits.read(1)? == 1 {
            let two = bits.read(1)? == 1;
            let wide = bits.read(1)?;
            let mut found = vec![bits.read(1 + 7 * wide)? as u16];
            if two {
                found.push(bits.read(8)? as u16);
            }
            let mut counts = [0; LONGEST + 1];
            counts[1] = found.len() as u16;
            return found
                .iter()
                .all(|symbol| usize::from(*symbol) < symbols)
                .then_some(Code {
                    symbols: found,
                    counts,
                });
        }
        const ORDER: [usize; 19] = [
            17, 18, 0, 1, 2, 3, 4, 5, 16, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15,
        ];
        let mut lengths = [0; 19];
        for at in ORDER.iter().take(4 + bits.read(4)? as usize) {
            lengths[*at] = bits.read(3)? as u8;
        }
        Code::of(&Code::lengths(bits, &Code::of(&lengths)?, symbols)?)
    }

    /// Reads the code lengths of so many symbols, which are encoded too.
    fn lengths(bits: &mut Bits, code: &Code, symbols: usize) -> Option<Vec<u8>> {
        let mut left = symbols;
        if bits.read(1)? == 1 {
            let count = 2 + 2 * bits.read(3)?;
            left = 2 + bits.read(count)? as usize;
        }
        (left <= symbols).then_some(())?;
        let (mut lengths, mut latest) = (Vec::with_capacity(symbols), 8);
        while lengths.len() < symbols && left > 0 {
            left -= 1;
            let (length, times) = match code.symbol(bits)? {
                16 => (latest, 3 + bits.read(2)?),
                17 => (0, 3 + bits.read(3)?),
                18 => (0, 11 + bits.read(7)?),
                length => (length as u8, 1),
            };
            if length != 0 {
                latest = length;
            }
            lengths.extend(std::iter::repeat_n(length, times as usize));
        }
        (lengths.len() <= symbols).then_some(lengths)
    }

    /// Returns the code with these lengths, 0 for an unused symbol.
    fn of(lengths: &[u8]) -> Option<Code> {
        let mut counts = [0; LONGEST + 1];
        let mut symbols: Vec<u16> = (0..lengths.len())
            .filter(|at| lengths[*at] > 0)
            .map(|at| at as u16)
            .collect();
        symbols
            .iter()
            .for_each(|at| counts[usize::from(lengths[usize::from(*at)])] += 1);
        symbols.sort_by_key(|at| lengths[usize::from(*at)]);
        let used: u32 = (1..=LONGEST)
            .map(|length| u32::from(counts[length]) << (LONGEST - length))
            .sum();
        // Every code belongs to a symbol; if there is only one, its code has no bits.
        (symbols.len() == 1 || used == 1 << LONGEST).then_some(Code { symbols, counts })
    }

    fn symbol(&self, bits: &mut Bits) -> Option<u32> {
        if let [only] = self.symbols[..] {
            return Some(u32::from(only));
        }
        let (mut code, mut first, mut index) = (0, 0, 0);
        for count in self.counts[1..].iter().map(|count| u32::from(*count)) {
            code |= bits.read(1)?;
            if code < first + count {
                return self
                    .symbols
                    .get((index + code - first) as usize)
                    .map(|symbol| u32::from(*symbol));
            }
            index += count;
            first = (first + count) << 1;
            code <<= 1;
        }
        None
    }

    /// Returns the size in bytes of the decoder's tables for this code: one with four bytes for all
    /// codes of up to ten bits, and nodes of 16 bytes for longer ones, in a list that may have
    /// twice the needed capacity.
    fn bytes(&self) -> u64 {
        const TABLE_BITS: usize = 10;
        let longest = self
            .counts
            .iter()
            .rposition(|count| *count > 0)
            .unwrap_or(0);
        let long: u64 = self.counts[TABLE_BITS + 1..]
            .iter()
            .map(|count| u64::from(*count))
            .sum();
        match self.symbols.len() {
            1 => 0,
            _ => (4 << longest.min(TABLE_BITS)) + 16 * 4 * long + 64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_read_as_it_was_written() {
        // Lengths 1, 2, 3, 3: the codes 0, 10, 110, 111.
        let code = Code::of(&[3, 1, 0, 2, 3]).unwrap();
        // 0, 10, 110, 111, 0, from the lowest bit up.
        let mut bits = Bits {
            data: &[0b1101_1010, 0b01],
            at: 0,
        };
        let symbols: Vec<_> = (0..5).map(|_| code.symbol(&mut bits).unwrap()).collect();
        assert_eq!(symbols, [1, 3, 0, 4, 1]);
        assert_eq!(code.bytes(), (4 << 3) + 64);
        for incomplete in [&[1, 2][..], &[1, 1, 1], &[]] {
            assert!(Code::of(incomplete).is_none());
        }
    }

    /// Files from libwebp are parsed to the end of their codes.
    #[test]
    fn real_files_are_understood() {
        for file in [
            &include_bytes!("../../tests/image/rgb.webp")[..],
            include_bytes!("../../tests/image/rgba.webp"),
        ] {
            let at = file.windows(4).position(|name| name == b"VP8L").unwrap();
            let bytes = table_bytes(&file[at + 8..], None, u64::MAX).unwrap();
            assert!((Group::BYTES + 1..1 << 20).contains(&bytes), "{bytes}");
            assert_eq!(
                table_bytes(&file[at + 8..at + 20], None, u64::MAX),
                None,
                "cut off"
            );
        }
    }
}
