"""What an exception of another library says, as one line for people.

Keras, TensorFlow, the converter and the interpreters say what went wrong somewhere in their messages, between terminal
codes, the arguments of the call, the configuration of the whole model, or a dump of the graph. `say_why` finds it.
"""

import re

from reflow_tf.errors import InputError

MOST_CHARACTERS = 200

_Rules = tuple[tuple[re.Pattern[str], str], ...]

# Behind the last of these stands what really happened.
_INTRODUCTIONS = re.compile(
    r"(?:Exception|Error) encountered(?: when calling [^\n]*?\(\)\.|:)"
    r"|Call to \w+ failed:"
    r"|^\s*(?:[a-z_]\w*\.)*[A-Z]\w*(?:Error|Exception): ",
    re.MULTILINE,
)
_EXAMPLE = re.compile(r"Example error message for object <\w+ name=([^,>]+)[^>]*>:\s*")
_ARGUMENTS = re.compile(r"\s*(?:Call a|A)rguments received by .*", re.DOTALL)
_LISTS = re.compile(r"\s*(?:List of objects that could not be loaded|Use one of the following)\b.*", re.DOTALL)
_SYSTEM = re.compile(r"error message = '([^']+)'")

# What MLIR says: the operators that are to blame, or the first complaint that is not of the whole.
_LACKING = re.compile(
    r"(?:TF Select|Flex|Custom) ops: (?P<names>.+)"
    r"|'tf\.(?P<name>\w+)' op is neither a custom op nor a flex op"
    r"|Node number \d+ \(Flex(?P<flex>\w+)\)"
    r"|Encountered unresolved custom op: (?:Flex)?(?P<custom>\w+)"
)
_COMPLAINT = re.compile(r"error: (?!failed while converting|Failures have been detected)(.+)")

_CODES: _Rules = (
    (re.compile(r"(?:\x1b|\\x1b|\\033|\\u001b)\[[0-9;]*[A-Za-z]"), ""),
    (re.compile(r"\\n"), "\n"),
    (re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]"), ""),
)
_NOISE: _Rules = (
    (re.compile(r"\{\{function_node [^}]*\}\}\s*"), ""),
    (re.compile(r"\[\[\{\{node [^}]*\}\}\]\]"), ""),
    (re.compile(r"'\{\{node ([^}]*)\}\} = [^']*'"), r"'\1'"),
    (re.compile(r"\{\{node ([^}]*)\}\}"), r"\1"),
    (re.compile(r"\s*\[Op:[^\]]*\](?: name: ?\S*)?"), ""),
    (re.compile(r"<Variable path=([^,>]+),.*?>", re.DOTALL), r"\1"),
    (re.compile(r"<tf\.Variable '([^']+)'.*?>", re.DOTALL), r"\1"),
    (re.compile(r"<?(?:tf\.|Keras)Tensor[:(]? ?(?:'[^']*' )?shape=(\([^)]*\))[^>)]*[>)]"), r"a tensor of shape \1"),
    (re.compile(r"<[A-Z]\w* name=([^,>]+)[^>]*>"), r"\1"),
    (re.compile(r"\s*<_io\.[^>]*>"), ""),
    (re.compile(r"<class '(?:\w+\.)*(\w+)'>"), r"\1"),
    (re.compile(r"<(?:\w+ )?(?:[\w<>]+\.)*(\w+)(?: object)? at 0x[0-9a-f]+>"), r"\1"),
    (re.compile(r"\b(?:keras\.src|tensorflow\.python|tensorflow\.lite\.python)(?:\.\w+)*\.(?=\w)"), ""),
)
_NOISY_LINE = re.compile(
    r'File "|Detected at node|<stack traces|Graph execution error|in user code:|\^+$|\S+:\d+(?::\d+)?: (?:note|error):'
)
_SENTENCE_END = re.compile(r"(?<=[.!?;])\s+")
_CLAUSE_END = re.compile(r"(?<=[,:])\s+|\s+(?=\()")


def say_why(error: BaseException | str) -> str:
    """The decisive words of an exception, without what surrounds them.

    Args:
        error: raised by whatever library, or what a program printed. The words of our own InputError stay as they are.

    Returns:
        One line of at most MOST_CHARACTERS characters without a full stop at its end: whole sentences, or whole clauses
        of the first one; the kind of the exception where there is nothing else to say.
    """
    if isinstance(error, InputError):
        return str(error)
    text = _replace(_read_message(error), _CODES)
    if operators := _find_lacking_operators(text):
        return f"there is no TFLite operator for {', '.join(operators)}"
    complaint = _COMPLAINT.search(text)
    text = _take_innermost(complaint[1] if complaint else text)
    text = _replace(_drop_configurations(text), _NOISE)
    lines = [line.strip() for line in text.splitlines() if line.strip() and not _NOISY_LINE.match(line.strip())]
    words = _shorten(" ".join(" ".join(lines).split()))
    return words or f"{'a failure' if isinstance(error, str) else type(error).__name__} without a message in words"


def _read_message(error: BaseException | str) -> str:
    if isinstance(error, OSError) and error.strerror:
        said = _SYSTEM.search(error.strerror)  # HDF5 wraps what the system says
        return said[1] if said else error.strerror
    if isinstance(error, KeyError) and error.args:
        name = str(error.args[0])  # str(error) would be its repr
        return name if " " in name else f"nothing in it is called {name!r}"
    return str(error)


def _replace(text: str, rules: _Rules) -> str:
    for pattern, replacement in rules:
        text = pattern.sub(replacement, text)
    return text


def _find_lacking_operators(text: str) -> list[str]:
    """Operators of TensorFlow that a converter or interpreter does not know, each once."""
    named = (next(group for group in found.groups() if group) for found in _LACKING.finditer(text))
    names = (name.strip().removeprefix("Flex") for group in named for name in group.split(","))
    return list(dict.fromkeys(name for name in names if name))


def _take_innermost(text: str) -> str:
    """What is said behind the last introduction, and before the arguments of the call."""
    subject = ""
    if example := _EXAMPLE.search(text):
        subject, text = f"{example[1]}: ", text[example.end() :]
    text = _LISTS.sub("", _ARGUMENTS.sub("", text))
    for introduction in reversed(list(_INTRODUCTIONS.finditer(text))):
        if rest := text[introduction.end() :].strip():
            return subject + rest
    return subject + text


def _drop_configurations(text: str) -> str:
    """Without the configurations of layers and models, which run to thousands of characters."""
    kept, position = [], 0
    for found in re.finditer(r"\s*(?:\b[Ff]ull object |\busing )?\bconfig(?:uration)?\s*[=:]\s*\{", text):
        if found.start() < position:
            continue
        kept.append(text[position : found.start()])
        depth, position = 1, found.end()
        while depth and position < len(text):
            depth += {"{": 1, "}": -1}.get(text[position], 0)
            position += 1
    return "".join([*kept, text[position:]])


def _shorten(text: str) -> str:
    """As many whole sentences as fit, or whole clauses of the first; nothing where even one clause does not."""
    if len(text) <= MOST_CHARACTERS:  # whole, even if it speaks of one bracket
        return text.rstrip(" .,:;")
    for ends in (_SENTENCE_END, _CLAUSE_END):
        places = [found.start() for found in ends.finditer(text)] + [len(text)]
        fitting = [place for place in places if place <= MOST_CHARACTERS and _is_balanced(text[:place])]
        if fitting:
            return text[: fitting[-1]].rstrip(" .,:;")
    return ""


def _is_balanced(text: str) -> bool:
    return all(text.count(left) == text.count(right) for left, right in ("()", "[]", "{}")) and text.count("`") % 2 == 0
