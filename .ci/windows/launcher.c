/* python.exe for a folder that holds pythonXY.dll: the wheels that carry the DLL have none.
 * wine_python.py compiles it with -DPYTHON_DLL=L"pythonXY.dll". */
#include <stdio.h>
#include <windows.h>

typedef int (*main_function)(int, wchar_t **);

int wmain(int argc, wchar_t **argv)
{
    HMODULE library = LoadLibraryW(PYTHON_DLL);
    main_function run = library ? (main_function)(void *)GetProcAddress(library, "Py_Main") : NULL;

    if (run == NULL) {
        fprintf(stderr, "%ls or its Py_Main is missing: error %lu\n", PYTHON_DLL, GetLastError());
        return 1;
    }
    return run(argc, argv);
}
