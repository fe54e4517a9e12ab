//! The delay of the last hour as a small drawing, with a sentence for those who do not see it.
//!
//! One step a minute, two pixels wide. The height is logarithmic and relative to the largest delay of the hour, but
//! never to less than [`SMALLEST_SCALE`] messages, so that a module that is never late shows no mountains. Minutes without a number are
//! a gap with a line below.

use std::fmt::{self, Display, Formatter, Write};

use crate::html::Count;
use crate::kmonitor::sparkline::decode;
use crate::kmonitor::view::History;

/// Height of the drawing in pixels.
const HEIGHT: u32 = 24;

/// The history byte that fills the height if no larger one occurs: about 100 messages.
const SMALLEST_SCALE: u8 = 55;

/// The drawing of a history; `now` is the present delay.
pub(super) struct Sparkline<'a> {
    pub(super) history: &'a History,
    pub(super) now: Option<u64>,
}

impl Display for Sparkline<'_> {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        let known = self.history.iter().any(|code| *code != 0);
        if !known {
            return formatter.write_str("<span class=\"topic\">no history</span>");
        }
        write!(
            formatter,
            "<svg class=\"spark\" viewBox=\"0 0 120 {HEIGHT}\" role=\"img\" aria-label=\"{}\">{}</svg>",
            self.sentence(),
            self.paths()
        )
    }
}

impl Sparkline<'_> {
    /// Says in words what the drawing shows.
    fn sentence(&self) -> String {
        let largest = self.history.iter().filter_map(|code| decode(*code)).max().unwrap_or(0);
        let unknown = self.history.iter().filter(|code| **code == 0).count();
        let mut text = String::from("delay, last hour: ");
        match self.now {
            Some(now) => write!(text, "now {}", Count(now)),
            None => write!(text, "now unknown"),
        }
        .and_then(|()| write!(text, ", most about {}", Count(largest.max(self.now.unwrap_or(0)))))
        .expect("writing into memory does not fail");
        if unknown > 0 {
            write!(text, ", unknown for {unknown} min").expect("writing into memory does not fail");
        }
        text
    }

    /// Returns the area of the known minutes, and a line below the unknown ones.
    fn paths(&self) -> String {
        let scale = u32::from(self.history.iter().copied().max().unwrap_or(0).max(SMALLEST_SCALE));
        // Every known minute is at least one pixel high: 0 is a line.
        let height = |code: u8| 1 + (u32::from(code).saturating_sub(1) * (HEIGHT - 1) + scale / 2) / scale;
        let (mut area, mut gaps) = (String::new(), String::new());
        let mut minute = 0;
        for run in self.history.chunk_by(|one, next| (*one == 0) == (*next == 0)) {
            let x = 2 * minute;
            minute += run.len();
            let written = if run[0] == 0 {
                write!(gaps, "M{x} {}h{}v1H{x}z", HEIGHT - 1, 2 * run.len())
            } else {
                write_steps(&mut area, x, run.iter().map(|code| height(*code)))
            };
            written.expect("writing into memory does not fail");
        }
        let gaps = if gaps.is_empty() { gaps } else { format!("<path class=\"gap\" d=\"{gaps}\"/>") };
        let area = if area.is_empty() { area } else { format!("<path d=\"{area}\"/>") };
        gaps + &area
    }
}

/// Writes the outline of steps of these heights from the left, closed along the bottom. Minutes of the same height are
/// one line.
fn write_steps(path: &mut String, x: usize, heights: impl Iterator<Item = u32>) -> fmt::Result {
    write!(path, "M{x} {HEIGHT}")?;
    let (mut last, mut length) = (0, 0);
    for height in heights {
        if height != last {
            if length > 0 {
                write!(path, "h{length}")?;
            }
            write!(path, "v{}", i64::from(last) - i64::from(height))?;
            (last, length) = (height, 0);
        }
        length += 2;
    }
    write!(path, "h{length}V{HEIGHT}z")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(codes: &[(u8, usize)], now: Option<u64>) -> String {
        let codes: Vec<u8> = codes.iter().flat_map(|(code, count)| std::iter::repeat_n(*code, *count)).collect();
        Sparkline { history: &codes.try_into().unwrap(), now }.to_string()
    }

    #[test]
    fn known_minutes_are_an_area_and_unknown_ones_a_gap() {
        let text = drawn(&[(0, 10), (1, 40), (83, 10)], Some(1_130));
        assert!(text.contains("<path class=\"gap\" d=\"M0 23h20v1H0z\"/>"), "{text}");
        assert!(text.contains("<path d=\"M20 24v-1h80v-23h20V24z\"/>"), "{text}");
        assert!(text.contains("aria-label=\"delay, last hour: now 1,130, most about 1,130, unknown for 10 min\""), "{text}");
        assert_eq!(drawn(&[(0, 60)], None), "<span class=\"topic\">no history</span>");
        assert!(drawn(&[(1, 59), (0, 1)], None).contains("now unknown"), "a gap at the end");
    }

    #[test]
    fn a_small_delay_is_drawn_small() {
        // Two messages, and the line of 0 beside them.
        let text = drawn(&[(1, 58), (10, 1), (1, 1)], Some(0));
        assert!(text.contains("M0 24v-1h116v-4h2v4h2V24z"), "{text}");
    }

    #[test]
    fn every_height_fits_into_the_drawing() {
        for code in 0..=u8::MAX {
            let history: History = std::array::from_fn(|minute| if minute % 2 == 0 { code } else { 1 });
            let text = Sparkline { history: &history, now: None }.to_string();
            let path = text.split("d=\"").last().unwrap();
            let steps = path.split('v').skip(1).map(|step| {
                let end = step.find(|letter: char| letter != '-' && !letter.is_ascii_digit()).unwrap();
                step[..end].parse::<i32>().unwrap()
            });
            let heights: Vec<i32> = steps.scan(0, |height, step| { *height -= step; Some(*height) }).collect();
            assert!(code == 0 || heights.iter().all(|height| (0..=24).contains(height)), "{code}: {heights:?}");
        }
    }
}
