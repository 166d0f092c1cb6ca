//! An SVG file under construction: shapes with classes, whose colours follow the reader's choice of
//! light or dark.

use std::fmt::Write;

/// The classes `s0` and `s1` are the colours of the runtimes. A background of its own keeps a plot
/// readable where the page is dark and the system is not.
const STYLE: &str = "\
    svg { font: 12px system-ui, sans-serif }\n\
    .title { font-weight: 600 } .small { font-size: 11px }\n\
    .bar, .dot { fill: currentColor }\n\
    .line { fill: none; stroke: currentColor; stroke-width: 2 }\n\
    .whisker { stroke: currentColor; stroke-width: 1.5; opacity: .7 }\n\
    .page { fill: #ffffff } .text { fill: #1f2328 } .faint { fill: #59636e }\n\
    .grid { stroke: #d1d9e0 } .s0 { color: #0969da } .s1 { color: #d9730d }\n\
    @media (prefers-color-scheme: dark) {\n\
    .page { fill: #0d1117 } .text { fill: #e6edf3 } .faint { fill: #9198a1 }\n\
    .grid { stroke: #3d444d } .s0 { color: #4493f8 } .s1 { color: #f0883e }\n\
    }\n";

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Point {
    pub(crate) x: f64,
    pub(crate) y: f64,
}

pub(crate) fn point(x: f64, y: f64) -> Point {
    Point { x, y }
}

/// To which side of its point a text is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Anchor {
    Start,
    Middle,
    End,
}

#[derive(Debug)]
pub(crate) struct Svg {
    width: f64,
    height: f64,
    title: String,
    body: String,
}

impl Svg {
    /// `title` is what a screen reader says.
    pub(crate) fn new(width: f64, height: f64, title: &str) -> Self {
        Self { width, height, title: title.to_owned(), body: String::new() }
    }

    pub(crate) fn line(&mut self, class: &str, from: Point, to: Point) {
        let (Point { x: x1, y: y1 }, Point { x: x2, y: y2 }) = (from, to);
        self.shape(format_args!(
            r#"<line class="{class}" x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}"/>"#
        ));
    }

    pub(crate) fn rectangle(&mut self, class: &str, at: Point, width: f64, height: f64) {
        let Point { x, y } = at;
        self.shape(format_args!(
            r#"<rect class="{class}" x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}"/>"#
        ));
    }

    pub(crate) fn circle(&mut self, class: &str, at: Point) {
        let Point { x, y } = at;
        self.shape(format_args!(r#"<circle class="{class}" cx="{x:.1}" cy="{y:.1}" r="3"/>"#));
    }

    pub(crate) fn path(&mut self, class: &str, points: &[Point]) {
        let points = points.iter().map(|Point { x, y }| format!("{x:.1},{y:.1}"));
        let points = points.collect::<Vec<_>>().join(" ");
        self.shape(format_args!(r#"<polyline class="{class}" points="{points}"/>"#));
    }

    pub(crate) fn text(&mut self, class: &str, anchor: Anchor, at: Point, text: &str) {
        let Point { x, y } = at;
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let text = escaped(text);
        self.shape(format_args!(
            r#"<text class="{class}" text-anchor="{anchor}" x="{x:.1}" y="{y:.1}">{text}</text>"#
        ));
    }

    pub(crate) fn finish(self) -> String {
        let Self { width, height, title, body } = self;
        let title = escaped(&title);
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
             width=\"{width}\" height=\"{height}\" role=\"img\">\n<title>{title}</title>\n\
             <style>\n{STYLE}</style>\n\
             <rect class=\"page\" width=\"{width}\" height=\"{height}\" rx=\"6\"/>\n{body}</svg>\n"
        )
    }

    fn shape(&mut self, shape: std::fmt::Arguments<'_>) {
        // Writing to a String does not fail.
        let _ = writeln!(self.body, "{shape}");
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_escaped() {
        let mut svg = Svg::new(10.0, 20.0, "a & b");
        svg.text("small", Anchor::End, point(1.0, 2.25), "<1");
        let text = svg.finish();
        assert!(text.contains("<title>a &amp; b</title>"));
        assert!(
            text.contains(r#"<text class="small" text-anchor="end" x="1.0" y="2.2">&lt;1</text>"#)
        );
    }
}
