//! Appends numbers as decimal text. `std::fmt` does the same for any format, and takes several times as long: noticeable
//! where each request has some numbers in its answer and its log line.

/// Text or bytes that numbers are appended to.
pub(crate) trait DecimalSink {
    fn push_ascii(&mut self, text: &str);
}

impl DecimalSink for Vec<u8> {
    fn push_ascii(&mut self, text: &str) {
        self.extend_from_slice(text.as_bytes());
    }
}

impl DecimalSink for String {
    fn push_ascii(&mut self, text: &str) {
        self.push_str(text);
    }
}

/// Appends `number` to `out`.
pub(crate) fn push_decimal(out: &mut impl DecimalSink, number: u64) {
    const MAX_DIGITS: usize = 20;
    let (mut digits, mut start, mut rest) = ([0; MAX_DIGITS], MAX_DIGITS, number);
    loop {
        start -= 1;
        digits[start] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.push_ascii(str::from_utf8(&digits[start..]).unwrap_or_default());
}

/// Appends `number` to `out`, with a sign if it is negative.
pub(crate) fn push_signed(out: &mut impl DecimalSink, number: i64) {
    if number < 0 {
        out.push_ascii("-");
    }
    push_decimal(out, number.unsigned_abs());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_appended_as_std_formats_them() {
        for number in [0, 1, 9, 10, 99, 100, 12_345, i64::MAX, -1, -10, i64::MIN] {
            let (mut text, mut bytes) = ("x".to_owned(), b"x".to_vec());
            push_signed(&mut text, number);
            push_signed(&mut bytes, number);
            assert_eq!((&text, &bytes[..]), (&format!("x{number}"), text.as_bytes()));
        }
        let mut text = Vec::new();
        push_decimal(&mut text, u64::MAX);
        assert_eq!(String::from_utf8(text).unwrap(), u64::MAX.to_string());
    }
}
