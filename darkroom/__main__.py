"""`python -m darkroom` is the same program as `darkroom`."""

from darkroom.cli.main import main

raise SystemExit(main())
