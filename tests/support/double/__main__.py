"""Run the double as a process of its own."""
import argparse
import asyncio
import signal
from dataclasses import fields

from tests.support.double import Controls
from tests.support.double import __doc__ as package
from tests.support.double.faults import ALL_FAULTS
from tests.support.double.server import Server


async def serve(port, controls):
    """Run until SIGTERM or SIGINT."""
    server, end = Server(port, **controls), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, end.set)
    await server.start()
    print(f'http://127.0.0.1:{server.port}', flush=True)
    await end.wait()
    await server.close()


def main():
    """Run the double as a process of its own."""
    parser = argparse.ArgumentParser(prog='python -m tests.support.double', description=package.partition('\n')[0])
    parser.add_argument('--port', type=int, default=0)
    parser.add_argument('--faults', action='store_true', help='list the faults and end')
    for control in fields(Controls):
        parser.add_argument(f'--{control.name.replace("_", "-")}', type=control.type, default=control.default,
                            help=f'default {control.default!r}')
    controls = vars(parser.parse_args())
    port = controls.pop('port')
    if controls.pop('faults'):
        return print('\n'.join(f'{name:20} {run.__doc__}' for name, run in ALL_FAULTS.items()))
    asyncio.run(serve(port, controls))


if __name__ == '__main__':
    main()
