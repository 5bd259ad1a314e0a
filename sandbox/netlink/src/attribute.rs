//! Attributes: values by number, after a message's header or in one another.

pub use netlink_packet_core::DefaultNla as Attribute;
use netlink_packet_core::{Emitable, NLA_HEADER_SIZE, NlasIterator};

/// The value of the first attribute of type `kind` after a message's own header of `header` bytes.
pub fn attribute(body: &[u8], header: usize, kind: u16) -> Option<&[u8]> {
    let attributes = NlasIterator::new(body.get(header..)?);
    let found = attributes.filter_map(Result::ok).find(|attribute| attribute.kind() == kind)?;
    let end = usize::from(found.length());
    found.into_inner().get(NLA_HEADER_SIZE..end)
}

/// The body of a message: its own header, and its attributes.
pub fn body(header: &[u8], attributes: &[Attribute]) -> Vec<u8> {
    let mut body = header.to_vec();
    body.resize(header.len() + attributes.buffer_len(), 0);
    attributes.emit(&mut body[header.len()..]);
    body
}

/// An attribute with these bytes as its value.
pub fn bytes(kind: u16, value: &[u8]) -> Attribute {
    Attribute::new(kind, value.to_vec())
}

/// An attribute that holds others.
pub fn nested(kind: u16, attributes: &[Attribute]) -> Attribute {
    Attribute::new(kind, body(&[], attributes))
}

/// An attribute with a text that ends with 0.
pub fn text(kind: u16, value: &str) -> Attribute {
    let mut bytes = value.as_bytes().to_vec();
    bytes.push(0);
    Attribute::new(kind, bytes)
}

/// An attribute with a number.
pub fn number(kind: u16, value: u32) -> Attribute {
    Attribute::new(kind, value.to_ne_bytes().to_vec())
}

/// The 32-bit number at `at`.
pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// The 16-bit number at `at`.
pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_attributes_and_skips_others() {
        let attributes = [number(4, 1500), text(3, "eth0"), nested(18, &[text(1, "veth")])];
        let body = body(&[9; 8], &attributes);
        assert_eq!(attribute(&body, 8, 4), Some(&1500u32.to_ne_bytes()[..]));
        assert_eq!(attribute(&body, 8, 3), Some(&b"eth0\0"[..]));
        let info = attribute(&body, 8, 18).unwrap();
        assert_eq!(attribute(info, 0, 1), Some(&b"veth\0"[..]));
        assert_eq!(attribute(&body, 8, 77), None);
        assert_eq!(attribute(&body[..9], 8, 4), None, "cut short");
        assert_eq!(attribute(&body, 99, 4), None);
    }
}
