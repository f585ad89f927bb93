//! Python's `textwrap.wrap` as Jinja2's `wordwrap` calls it: tabs and newlines kept, white space dropped at breaks.

use super::methods::is_space;

/// The lines of at most `width` characters that `text` is broken into.
pub(crate) fn wrap(text: &str, width: usize, break_words: bool, break_hyphens: bool) -> Vec<String> {
    let mut chunks: std::collections::VecDeque<String> = chunks(text, break_hyphens).into();
    let mut lines: Vec<String> = Vec::new();
    while !chunks.is_empty() {
        let mut line: Vec<String> = Vec::new();
        let mut length = 0;
        if !lines.is_empty() && chunks.front().is_some_and(|chunk| is_blank(chunk)) {
            chunks.pop_front();
        }
        while let Some(chunk) = chunks.front() {
            let size = chunk.chars().count();
            if length + size > width {
                break;
            }
            length += size;
            line.extend(chunks.pop_front());
        }
        if chunks.front().is_some_and(|chunk| chunk.chars().count() > width)
            && let Some(chunk) = chunks.pop_front()
        {
            let room = width.saturating_sub(length);
            if break_words {
                let end = break_at(&chunk, room.max(usize::from(width > 0 && line.is_empty())), break_hyphens);
                let at = chunk.char_indices().nth(end).map_or(chunk.len(), |(at, _)| at);
                line.push(chunk[..at].to_owned());
                chunks.push_front(chunk[at..].to_owned());
            } else if line.is_empty() {
                line.push(chunk);
            } else {
                chunks.push_front(chunk);
            }
        }
        if line.last().is_some_and(|chunk| is_blank(chunk)) {
            line.pop();
        }
        if !line.is_empty() {
            lines.push(line.concat());
        }
    }
    lines
}

fn is_blank(chunk: &str) -> bool {
    chunk.chars().all(is_space)
}

/// Where a word too long for a line is cut, in characters: behind its last fitting hyphen, or where the line ends.
fn break_at(chunk: &str, room: usize, hyphens: bool) -> usize {
    if hyphens {
        let fitting: Vec<char> = chunk.chars().take(room).collect();
        if let Some(at) = fitting.iter().rposition(|c| *c == '-')
            && at > 0
            && fitting[..at].iter().any(|c| *c != '-')
        {
            return at + 1;
        }
    }
    room
}

/// Words and the white space between them; words in parts behind hyphens between letters.
fn chunks(text: &str, hyphens: bool) -> Vec<String> {
    let mut chunks: Vec<String> = Vec::new();
    let chars: Vec<char> = text.chars().collect();
    let letter = |i: usize| chars.get(i).is_some_and(|c| c.is_alphabetic() || *c == '_');
    let word = |i: usize| chars.get(i).is_some_and(|c| c.is_alphanumeric() || *c == '_');
    let mut current = String::new();
    for (i, &c) in chars.iter().enumerate() {
        let boundary = i > 0
            && (is_space(c) != is_space(chars[i - 1])
                || hyphens
                    && chars[i - 1] == '-'
                    && i >= 3
                    && letter(i - 2)
                    && word(i - 3)
                    && word(i)
                    && (letter(i + 1) || (word(i + 1) && letter(i + 2))));
        if boundary {
            chunks.push(std::mem::take(&mut current));
        }
        current.push(c);
    }
    if !current.is_empty() {
        chunks.push(current);
    }
    chunks
}
