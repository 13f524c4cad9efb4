"""Compare finished runs with what is documented of them: python tests/expected.py demo_reward demo_policy
demo_evaluation. Exit status 1 where a figure lies outside its range.

The ranges lie in static/expected.json; lm_human_preferences/reports/expected.py says what they mean.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lm_human_preferences.foundation.errors import exit_on_user_error
from lm_human_preferences.foundation.files import read_json_object
from lm_human_preferences.foundation.root import find_path
from lm_human_preferences.reports.expected import compare


@exit_on_user_error
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="finished runs that static/expected.json knows")
    parser.add_argument("--save_dir", default="saved_models", metavar="FOLDER", help="the folder that holds them")
    arguments, outside = parser.parse_args(), []
    for run in arguments.runs:
        folder = find_path(arguments.save_dir) / run
        config, result = (read_json_object(folder / name) for name in ("config.json", "result.json"))
        compared = compare(run, config, result)
        print("\n".join([*compared.lines, ""]))
        outside += compared.outside
    if outside:
        print(f"outside their range: {', '.join(outside)}", file=sys.stderr)
        sys.exit(1)
    print("every figure lies in its range")


if __name__ == "__main__":
    main()
