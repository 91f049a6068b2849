use crate::{
    cuts,
    mqtt_connect::announced,
    wire::mqtt::{Connack, Version, connack_is_broker_fault, parse_connack},
};

/// A broker's first packets, AUTHs and then the CONNACK, are framed alike whole, byte by byte and in pieces, in every
/// version; no prefix of them is taken for something else, and no whole one for a prefix; no more is skipped than has come; and what an older version
/// reads, the newer ones do not read differently.
pub fn mqtt_packets(bytes: &[u8]) {
    let shown = bytes.escape_ascii();
    for version in [Version::V31, Version::V311, Version::V5] {
        let whole = answered(std::iter::once(bytes), version);
        assert_eq!(answered(bytes.chunks(1), version), whole, "{version:?}, byte by byte: {shown}");
        assert_eq!(answered(cuts::pieces(bytes), version), whole, "{version:?}, in pieces: {shown}");

        let packet = parse_connack(bytes, version);
        for cut in cuts::prefixes(bytes, 5) {
            let early = parse_connack(&bytes[..cut], version);
            assert!(early == Connack::Incomplete || early == packet, "{version:?}, {early:?} at {cut}: {shown}");
        }
        match packet {
            Connack::Auth { length } => {
                assert!(version == Version::V5 && bytes[0] == 0xf0 && (2..=bytes.len()).contains(&length), "{shown}");
                assert_eq!(parse_connack(&bytes[..length - 1], version), Connack::Incomplete, "{shown}");
            }
            Connack::Connack { code, length } => {
                assert!(bytes[0] == 0x20 && length >= 4, "{shown}");
                assert!(version == Version::V5 || length - 2 <= 5, "{shown}");
                assert!(code != 0 || !connack_is_broker_fault(version, code));
            }
            Connack::Incomplete => assert!(announced(bytes).is_none_or(|length| bytes.len() < length), "{shown}"),
            Connack::NotConnack => {}
        }
    }
    let [v31, v311, v5] = [Version::V31, Version::V311, Version::V5].map(|version| parse_connack(bytes, version));
    if matches!(v311, Connack::Connack { .. }) {
        assert_eq!((v31, v5), (v311, v311), "{shown}");
    }
}

/// The packet at which the stream is understood, and how many bytes were skipped before it.
fn answered<'a>(pieces: impl Iterator<Item = &'a [u8]>, version: Version) -> (Connack, usize) {
    let (mut begun, mut skipped) = (Vec::new(), 0);
    for piece in pieces {
        begun.extend_from_slice(piece);
        loop {
            match parse_connack(&begun, version) {
                Connack::Incomplete => break,
                Connack::Auth { length } => {
                    assert!(length <= begun.len(), "{length} of {}", begun.len());
                    begun.drain(..length);
                    skipped += length;
                }
                known => return (known, skipped),
            }
        }
    }
    (Connack::Incomplete, skipped)
}
