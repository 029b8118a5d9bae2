//! Protocol buffer fields, one after the other.
//!
//! ```text
//!  field:  tag = varint(number << 3 | wire type)   value
//!  wire type 0  varint          at most 10 bytes of 7 bits, lowest first, the high bit says that more follow
//!  wire type 1  8 bytes         little endian
//!  wire type 2  length varint, then that many bytes
//!  wire type 5  4 bytes         little endian
//! ```
//! Wire types 3 and 4 (groups) are deprecated and not used by dnstap.

use crate::dnstap::DnstapError;

/// The fields of one message, in the order in which they were written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fields<'a> {
    rest: &'a [u8],
}

/// A field's value by wire type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value<'a> {
    Varint(u64),
    Fixed64(u64),
    Bytes(&'a [u8]),
    Fixed32(u32),
}

impl<'a> Fields<'a> {
    pub(super) fn new(message: &'a [u8]) -> Self {
        Self { rest: message }
    }

    fn field(&mut self) -> Result<(u64, Value<'a>), DnstapError> {
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => Value::Varint(self.varint()?),
            1 => Value::Fixed64(u64::from_le_bytes(self.array()?)),
            2 => {
                let len = usize::try_from(self.varint()?).map_err(|_| DnstapError::Truncated)?;
                let (bytes, rest) = self.rest.split_at_checked(len).ok_or(DnstapError::Truncated)?;
                self.rest = rest;
                Value::Bytes(bytes)
            }
            5 => Value::Fixed32(u32::from_le_bytes(self.array()?)),
            _ => return Err(DnstapError::WireType { tag }),
        };
        Ok((tag >> 3, value))
    }

    fn varint(&mut self) -> Result<u64, DnstapError> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.rest.split_first().ok_or(DnstapError::Truncated)?;
            self.rest = rest;
            if shift == 63 && *byte > 1 {
                break; // 63 bits have come: there is room for one more
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(DnstapError::Varint)
    }

    fn array<const LEN: usize>(&mut self) -> Result<[u8; LEN], DnstapError> {
        let (array, rest) = self.rest.split_first_chunk().ok_or(DnstapError::Truncated)?;
        self.rest = rest;
        Ok(*array)
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Value<'a>), DnstapError>;

    /// The next field, or why there is none; nothing comes after an error.
    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.rest = &[];
        }
        Some(field)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(message: &[u8]) -> Vec<Result<(u64, Value<'_>), DnstapError>> {
        Fields::new(message).collect()
    }

    #[test]
    fn every_wire_type_is_read() {
        let message = [
            &[0x08, 0xac, 0x02][..],         // 1: varint 300
            &[0x11, 1, 0, 0, 0, 0, 0, 0, 0], // 2: 8 bytes
            &[0x1a, 2, b'o', b'k'],          // 3: bytes
            &[0x25, 0, 1, 0, 0],             // 4: 4 bytes
            &[0xf8, 0x7f, 0],                // 2047: varint 0
        ]
        .concat();
        let expected = [
            (1, Value::Varint(300)),
            (2, Value::Fixed64(1)),
            (3, Value::Bytes(b"ok")),
            (4, Value::Fixed32(256)),
            (2047, Value::Varint(0)),
        ];
        assert_eq!(fields(&message), expected.map(Ok));
    }

    #[test]
    fn a_number_has_64_bits_at_most() {
        let number = |last: u8| [&[0x08][..], &[0xff; 9], &[last]].concat();
        assert_eq!(fields(&number(1)), [Ok((1, Value::Varint(u64::MAX)))]);
        assert_eq!(fields(&number(0)), [Ok((1, Value::Varint(u64::MAX >> 1)))]);
        for last in [2, 0x7f, 0x80, 0x81, 0xff] {
            assert_eq!(fields(&number(last)), [Err(DnstapError::Varint)], "{last:#x}");
        }
    }

    #[test]
    fn a_broken_field_ends_the_walk_with_an_error() {
        for (message, error) in [
            (&[0x08][..], DnstapError::Truncated),
            (&[0x08, 0x80], DnstapError::Truncated),
            (&[0x11, 0], DnstapError::Truncated),
            (&[0x1a, 3, b'o', b'k'], DnstapError::Truncated),
            (&[0x1a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1], DnstapError::Truncated),
            (&[0xff; 11], DnstapError::Varint),
            (&[0x0b], DnstapError::WireType { tag: 0x0b }),
        ] {
            assert_eq!(fields(message), [Err(error)], "{message:?}");
        }
    }
}
