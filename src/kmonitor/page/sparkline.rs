//! The delay of the last hour as a small drawing, with a sentence for screen readers.
//!
//! One point a minute, two pixels apart. The height is logarithmic and relative to the largest delay of the hour, but
//! never to less than [`SMALLEST_SCALE`] messages, so that small delays do not look like large ones. Minutes without a
//! number are a gap with a line below.

use std::fmt::{self, Display, Formatter, Write};

use crate::html::Count;
use crate::kmonitor::sparkline::decode;
use crate::kmonitor::view::History;

/// Height of the drawing in pixels.
const HEIGHT: u32 = 20;

/// The history byte that fills the height if no larger one occurs: about 100 messages.
const SMALLEST_SCALE: u8 = 55;

/// The drawing of a history.
pub(super) struct Sparkline<'a>(pub(super) &'a History);

impl Display for Sparkline<'_> {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        let Some(largest) = self.0.iter().filter_map(|code| decode(*code)).max() else {
            return formatter.write_str("<small class=\"spark\">no history</small>");
        };
        write!(
            formatter,
            "<svg class=\"spark\" viewBox=\"0 0 120 {HEIGHT}\" role=\"img\" aria-label=\"last hour: at most {}",
            Count(largest)
        )?;
        match self.0.iter().filter(|code| **code == 0).count() {
            0 => {}
            unknown => write!(formatter, ", unknown for {unknown} min")?,
        }
        write!(formatter, "\">{}</svg>", self.paths())
    }
}

impl Sparkline<'_> {
    /// Returns the area of the known minutes, and a line below the unknown ones.
    fn paths(&self) -> String {
        let scale = u32::from(self.0.iter().copied().max().unwrap_or(0).max(SMALLEST_SCALE));
        // Every known minute is at least one pixel high: 0 is a line.
        let height = |code: u8| 1 + (u32::from(code).saturating_sub(1) * (HEIGHT - 1) + scale / 2) / scale;
        let (mut area, mut gaps) = (String::new(), String::new());
        let mut minute = 0;
        for run in self.0.chunk_by(|one, next| (*one == 0) == (*next == 0)) {
            let x = 2 * minute;
            minute += run.len();
            let written = if run[0] == 0 {
                write!(gaps, "M{x} {}h{}v1H{x}z", HEIGHT - 1, 2 * run.len())
            } else {
                write_area(&mut area, x, &run.iter().map(|code| height(*code)).collect::<Vec<_>>())
            };
            written.expect("writing into memory does not fail");
        }
        let gaps = if gaps.is_empty() { gaps } else { format!("<path class=\"gap\" d=\"{gaps}\"/>") };
        let area = if area.is_empty() { area } else { format!("<path d=\"{area}\"/>") };
        gaps + &area
    }
}

/// Writes the area below the points of these heights from the left. Points of the same height in a row are one line.
fn write_area(path: &mut String, x: usize, heights: &[u32]) -> fmt::Result {
    let (mut last, mut length) = (heights[0], 0);
    write!(path, "M{x} {HEIGHT}v-{last}l")?;
    for (index, height) in heights.iter().enumerate() {
        length += 2;
        if heights.get(index + 1) != Some(height) {
            // The last point keeps its height for its minute.
            let next = heights.get(index + 1).unwrap_or(height);
            if length > 2 {
                write!(path, "{} 0 ", length - 2)?;
            }
            match i64::from(*height) - i64::from(*next) {
                rise @ ..0 => write!(path, "2{rise} ")?,
                fall => write!(path, "2 {fall} ")?,
            }
            (last, length) = (*next, 0);
        }
    }
    path.truncate(path.trim_end().len());
    write!(path, "v{last}z")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(codes: &[(u8, usize)]) -> String {
        let codes: Vec<u8> = codes.iter().flat_map(|(code, count)| std::iter::repeat_n(*code, *count)).collect();
        Sparkline(&codes.try_into().unwrap()).to_string()
    }

    #[test]
    fn known_minutes_are_an_area_and_unknown_ones_a_gap() {
        let text = drawn(&[(0, 10), (1, 40), (83, 10)]);
        assert!(text.contains("<path class=\"gap\" d=\"M0 19h20v1H0z\"/>"), "{text}");
        assert!(text.contains("<path d=\"M20 20v-1l78 0 2-19 18 0 2 0v20z\"/>"), "{text}");
        assert!(text.contains("aria-label=\"last hour: at most 1,117, unknown for 10 min\""), "{text}");
        assert_eq!(drawn(&[(0, 60)]), "<small class=\"spark\">no history</small>");
    }

    #[test]
    fn a_small_delay_is_drawn_small() {
        // Two messages, and the line of 0 beside them.
        let text = drawn(&[(1, 58), (10, 1), (1, 1)]);
        assert!(text.contains("M0 20v-1l114 0 2-3 2 3 2 0v1z"), "{text}");
    }

    #[test]
    fn every_height_fits_into_the_drawing() {
        for code in 1..=u8::MAX {
            let text = Sparkline(&std::array::from_fn(|minute| if minute % 2 == 0 { code } else { 1 })).to_string();
            let first = text.split("20v-").nth(1).unwrap().split('l').next().unwrap();
            assert!((1..=20).contains(&first.parse::<u32>().unwrap()), "{code}: {text}");
        }
        assert!(Sparkline(&[u8::MAX; 60]).to_string().contains("M0 20v-20l118 0 2 0v20z"));
    }
}
