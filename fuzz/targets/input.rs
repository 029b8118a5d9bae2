//! How the input of a target is read: some bytes of options, how the stream is cut into pieces, and the stream.
//!
//! ```text
//! ┌─────────┬───────────────┬────────────────────────┬────────┐
//! │ options │ count, 1 byte │ lengths, 1 byte each   │ stream │
//! └─────────┴───────────────┴────────────────────────┴────────┘
//!             0 to 15 count   a piece has length + 1
//!                             bytes
//! ```
//! The lengths are used again and again. Without lengths every piece has 1 byte.

/// An input with `N` bytes of options.
pub(crate) struct Input<'a, const N: usize> {
    pub(crate) options: [u8; N],
    pub(crate) stream: &'a [u8],
    lens: &'a [u8],
}

impl<'a, const N: usize> Input<'a, N> {
    /// `None` for an input that is too short to have a stream.
    pub(crate) fn read(input: &'a [u8]) -> Option<Self> {
        let (options, rest) = input.split_first_chunk()?;
        let (count, rest) = rest.split_first()?;
        let (lens, stream) = rest.split_at_checked(usize::from(*count % 16))?;
        Some(Self { options: *options, stream, lens })
    }

    /// Cuts a part of the stream into pieces, none of them empty.
    pub(crate) fn pieces(&self, mut stream: &'a [u8]) -> Vec<&'a [u8]> {
        let lens = if self.lens.is_empty() { &[0] } else { self.lens };
        let mut pieces = Vec::new();
        for len in lens.iter().cycle() {
            if stream.is_empty() {
                break;
            }
            let (piece, rest) = stream.split_at((usize::from(*len) + 1).min(stream.len()));
            pieces.push(piece);
            stream = rest;
        }
        pieces
    }
}
