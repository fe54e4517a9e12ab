//! Appends numbers as decimal text. `std::fmt` takes several times as long, which is noticeable, since each request has
//! several numbers in its answer and its log line.

/// Appends `number` to `out`.
pub(crate) fn push_decimal(out: &mut Vec<u8>, number: u64) {
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
    out.extend_from_slice(&digits[start..]);
}

/// Appends `number` to `out`, with a sign if it is negative.
pub(crate) fn push_signed(out: &mut Vec<u8>, number: i64) {
    if number < 0 {
        out.push(b'-');
    }
    push_decimal(out, number.unsigned_abs());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_appended_as_std_formats_them() {
        for number in [0, 1, 9, 10, 99, 100, 12_345, i64::MAX, -1, -10, i64::MIN] {
            let mut text = b"x".to_vec();
            push_signed(&mut text, number);
            assert_eq!(String::from_utf8(text).unwrap(), format!("x{number}"));
        }
        let mut text = Vec::new();
        push_decimal(&mut text, u64::MAX);
        assert_eq!(String::from_utf8(text).unwrap(), u64::MAX.to_string());
    }
}
